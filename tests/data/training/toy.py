"""A small tokenizer with special tokens, chat templates of different kinds, and helpers to inspect examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from ryzjax.data.row import Row
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training.example import Example
from ryzjax.data.training.forms import detect_form, read_sample
from ryzjax.data.training.render import Renderer, TrainOn

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that leaves out the thoughts of old turns, like that of Qwen3."""
THOUGHTFUL = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>{% endif")
"""A chat template whose prompt opens a thought, but which renders none in turns."""
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template in which no special token ends a turn."""

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well, and you?"},
]


def toy_tokenizer(
    folder: Path, template: str | None = None, *, with_eos: bool = True, adds_bos: bool = True
) -> Tokenizer:
    """Returns a tokenizer of bytes with merges of "is" and of two line ends, and special tokens."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters, "is", "ĊĊ", "Ġi"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[("i", "s"), ("Ċ", "Ċ"), ("Ġ", "i")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"bos_token": "<s>"}
    if with_eos:
        config["eos_token"] = "</s>"
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


def examples_of(
    tokenizer: Tokenizer,
    values: Mapping[str, object],
    train_on: TrainOn = "completion",
    variables: Mapping[str, object] | None = None,
) -> list[Example]:
    """Returns the examples of one row, loaded as training data is."""
    row = Row("rows.jsonl:7", values)
    sample = read_sample(row, detect_form(row), has_template=tokenizer.chat_template is not None)
    return Renderer(tokenizer, train_on=train_on, variables=variables).examples(sample, row)


def spans(example: Example) -> list[tuple[int, int]]:
    """Returns the half-open intervals of trained tokens."""
    edges = [i for i in range(1, len(example)) if example.trained[i] != example.trained[i - 1]]
    starts = [0, *edges]
    ends = [*edges, len(example)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if example.trained[start]]


def trained_texts(tokenizer: Tokenizer, example: Example) -> list[str]:
    """Returns the text of each interval of trained tokens."""
    return [text_of(tokenizer, example.token_ids[start:end].tolist()) for start, end in spans(example)]


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Returns the decoded text, special tokens included."""
    return tokenizer.decode(ids, skip_special_tokens=False)


def write_lines(path: Path, rows: Sequence[object]) -> str:
    """Writes a JSON lines file and returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
