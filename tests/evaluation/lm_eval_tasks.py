"""Tasks for lm-evaluation-harness over local files, the definitions being those it ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

_CLEAN = """
from lm_eval.tasks.hellaswag.utils import preprocess


def process(docs):
    return docs.map(
        lambda doc: {"query": preprocess(doc["ctx"]), "choices": [preprocess(one) for one in doc["endings"]]}
    )
"""
_HELLASWAG = """
task: local_hellaswag
dataset_path: json
dataset_kwargs: {{data_files: {{validation: "{data}/hellaswag_val.jsonl"}}}}
validation_split: validation
output_type: multiple_choice
process_docs: !function clean.process
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
"""
_LAMBADA = """
task: local_lambada
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}/lambada_test.jsonl"}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
_MMLU = """
task: local_mmlu_{subject}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}/{subject}_test.jsonl", dev: "{data}/{subject}_dev.jsonl"}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: {shots}
description: "The following are multiple choice questions (with answers) about {title}.\\n\\n"
output_type: multiple_choice
doc_to_text: "{question}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
_QUESTION = "\\n".join(
    ["{{question.strip()}}", *(f"{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate("ABCD")), "Answer:"]
)
_GSM8K = """
task: local_gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}/gsm8k_test.jsonl"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0}}
num_fewshot: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
"""


def write_tasks(folder: Path, data: Path, *, subjects: Sequence[str], shots: int) -> list[str]:
    """Writes the definitions; returns their names. The JSON rows of the subjects are in `data`."""
    folder.mkdir()
    (folder / "clean.py").write_text(_CLEAN)
    texts = {"hellaswag": _HELLASWAG, "lambada": _LAMBADA, "gsm8k": _GSM8K}
    filled = {name: text.format(data=data) for name, text in texts.items()}
    for subject in subjects:
        filled[f"mmlu_{subject}"] = _MMLU.format(
            data=data, subject=subject, title=subject.replace("_", " "), shots=shots, question=_QUESTION
        )
    for name, text in filled.items():
        (folder / f"{name}.yaml").write_text(text)
    return [f"local_{name}" for name in filled]


def write_lines(path: Path, rows: Sequence[object]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
