"""Tasks through the engine against a forward outside of it; options; tasks of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, DataError, RequestError
from ryzjax.evaluation import DataSource, LocalData, OpenModel, TaskOptions, evaluate, evaluate_task
from ryzjax.evaluation.scoring import complete
from ryzjax.evaluation.statistics import Metric, accuracy
from ryzjax.evaluation.tasks.task import GenerationTask, Loaded
from tests.evaluation.logprobs import Oracle

ENDINGS = ["stops.", "goes on and on.", "eats the rope", "sings an aria, badly"]


@pytest.fixture
def data(tmp_path: Path) -> LocalData:
    """Four tasks of a few items each."""
    files = {
        "hellaswag_val": [
            {"ctx": f"Act {i}: a man pulls a rope. he", "endings": ENDINGS, "label": i % 4} for i in range(12)
        ],
        "lambada_test": [{"text": f"the cat {i} saw the other {word}"} for i, word in enumerate(["cat", "c", "dogs"])],
        "gsm8k_test": [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(3)],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mmlu").mkdir()
    for subject, n in (("one", 3), ("two", 4)):
        rows = "".join(f"{subject} {i}?,w{i},x,y,z,{i % 4}\n" for i in range(n))
        (tmp_path / "mmlu" / f"{subject}_test.csv").write_text(rows)
    return LocalData(tmp_path)


class Scorer:
    """Log-probabilities of continuations; the tokenizer is one of bytes, so a text's tokens are its bytes."""

    def __init__(self, model: OpenModel):
        self._oracle = Oracle(model.model, model.load(), max_tokens=256)
        self._encode = model.tokenizer.encode

    def __call__(self, context: str, continuation: str) -> float:
        rows = self._oracle.logprobs(self._encode(context + continuation))[len(context) - 1 :]
        return float(rows[np.arange(len(rows)), self._encode(continuation)].sum())


def test_the_figures_of_a_forward(tiny_llm: LLM, tiny: OpenModel, data: LocalData) -> None:
    found = evaluate(tiny_llm, ["mmlu", "hellaswag", "lambada"], data, TaskOptions())
    assert list(found) == ["mmlu", "hellaswag", "lambada"]
    logprob = Scorer(tiny)

    right = {"acc": 0, "acc_norm": 0}
    for i in range(12):
        sums = np.array([logprob(f"Act {i}: a man pulls a rope. he", f" {e}") for e in ENDINGS])
        right["acc"] += int(sums.argmax() == i % 4)
        right["acc_norm"] += int((sums / [len(e) for e in ENDINGS]).argmax() == i % 4)
    hellaswag = found["hellaswag"].metrics
    assert {name: hellaswag[name].value * 12 for name in right} == pytest.approx(right)
    assert hellaswag["acc_bytes"] == hellaswag["acc_norm"]

    answers = []
    for subject, n in (("one", 3), ("two", 4)):
        for i in range(n):
            header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
            context = f"{header}{subject} {i}?\nA. w{i}\nB. x\nC. y\nD. z\nAnswer:"
            sums = [logprob(context, f" {letter}") for letter in "ABCD"]
            answers.append(int(np.argmax(sums)) == i % 4)
    mmlu = found["mmlu"]
    assert (mmlu.metrics["acc"].value, mmlu.n) == (pytest.approx(sum(answers) / 7), 7)
    assert {name: group.value for name, group in mmlu.groups.items()} == pytest.approx(
        {"one": sum(answers[:3]) / 3, "two": sum(answers[3:]) / 4}
    )

    nll = []
    for i, word in enumerate(["cat", "c", "dogs"]):
        nll.append(-logprob(f"the cat {i} saw the other", f" {word}"))
    assert found["lambada"].metrics["perplexity"].value == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert found["lambada"].metrics["acc"].value == 0


class Stories(GenerationTask[str]):
    """A task of one's own: whether stories have a word in them."""

    name = "stories"
    stop = ("mom", "dog")
    max_new_tokens = 60

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[str]:
        return Loaded(items=("Once upon a time", "One day, a", "x" * 900), num_fewshot=0, data_sha256={})

    def prompt(self, item: str, tokenizer: Tokenizer, options: TaskOptions) -> list[int]:
        return tokenizer.encode(item)

    def metrics(self, items: Sequence[str], completions: Sequence[str]) -> dict[str, Metric]:
        self.completions = list(completions)
        return {"has_girl": accuracy(["girl" in text for text in completions])}


def test_a_task_of_our_own_generates_greedily(stories_llm: LLM, tmp_path: Path) -> None:
    task = Stories()
    found = evaluate_task(stories_llm, task, LocalData(tmp_path), TaskOptions(max_tokens=200))
    greedy = SamplingParams(temperature=0, max_tokens=60)
    for prompt, completion in zip(["Once upon a time", "One day, a"], task.completions, strict=False):
        text = stories_llm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0].text
        ends = [text.index(stop) for stop in task.stop if stop in text]
        assert completion == text[: min(ends, default=len(text))]
    assert found.metrics["has_girl"].value == sum("girl" in text for text in task.completions) / 3 > 0
    assert (found.task, found.n, found.num_cut, found.groups) == ("stories", 3, 1, {})


def test_sampled_completions(stories_llm: LLM, tmp_path: Path) -> None:
    def completions(**settings: float) -> list[str]:
        task = Stories()
        evaluate_task(stories_llm, task, LocalData(tmp_path), TaskOptions(max_tokens=200, **settings))  # pyright: ignore
        return task.completions

    sampled = completions(temperature=1.0)
    assert sampled == completions(temperature=1.0)
    assert sampled != completions(temperature=1.0, generation_seed=1)
    assert sampled != completions()
    # So little of the distribution is left that the likeliest token is.
    assert completions(temperature=1.0, top_p=1e-6) == completions()


def test_items_are_sampled_apart(stories_llm: LLM) -> None:
    prompt = stories_llm.engine.encode("Once upon a time")
    found = complete(stories_llm, [prompt] * 6, stop=(), max_new_tokens=20, title="t", temperature=1.0)
    assert len({completion.text for completion in found}) > 3


def test_options(tiny_llm: LLM, data: LocalData) -> None:
    options = TaskOptions(limit=2, max_tokens=24)
    found = evaluate(tiny_llm, ["hellaswag", "hellaswag"], data, options)
    assert list(found) == ["hellaswag"]
    assert (found["hellaswag"].n, found["hellaswag"].options) == (2, options)
    # 30 bytes of context and 7 to 21 of endings: none fits in 24 tokens whole.
    assert found["hellaswag"].num_cut == 8
    with pytest.raises(ConfigError, match=r"task 'arc' is not known; expected some of hellaswag, mmlu, lambada, gsm8k"):
        evaluate(tiny_llm, ["hellaswag", "arc"], data, TaskOptions())
    with pytest.raises(ConfigError, match="no task is named"):
        evaluate(tiny_llm, [], data, TaskOptions())
    with pytest.raises(RequestError, match="no chat template"):
        evaluate(tiny_llm, ["gsm8k"], data, TaskOptions(chat=True))
    (data.folder / "lambada_test.jsonl").write_text('{"text": "a b"}\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"lambada_test\.jsonl:2: text=5 is not text"):
        evaluate(tiny_llm, ["lambada"], data, TaskOptions())
