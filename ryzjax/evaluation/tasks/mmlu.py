"""MMLU (Hendrycks et al., 2021): multiple-choice questions on 57 subjects, answered by a letter from A to D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ryzjax.errors import DataError
from ryzjax.evaluation.scoring import Continuation, ContinuationScore
from ryzjax.evaluation.statistics import Metric, accuracy
from ryzjax.evaluation.tasks.rows import DataSource, Row, Rows, Split
from ryzjax.evaluation.tasks.task import ContinuationTask, Loaded, TaskOptions, hashes, select

__all__ = ["MMLU", "MMLUItem"]

_DATASET = "cais/mmlu"
_LETTERS = "ABCD"
_FEWSHOT = 5


@dataclass(frozen=True, kw_only=True)
class MMLUItem:
    """One question.

    Attributes:
      subject: The subject.
      context: The whole prompt: the header, the few-shot examples and the question.
      answer: The index of the correct letter.
    """

    subject: str
    context: str
    answer: int


class MMLU(ContinuationTask[MMLUItem]):
    """MMLU with the metric acc, over all questions and for each subject. The answer is the most likely letter.

    Prompts are those of lm-evaluation-harness: a line that names the subject, the few-shot examples, and the question.
    The examples are the first questions of the dev split: 5 by default, or none if there is no such split.
    """

    name = "mmlu"

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[MMLUItem]:
        subjects = data.subsets("mmlu/*_test.csv", _DATASET)
        has_dev = all(data.has(_split(subject, "dev")) for subject in subjects)
        shots = (_FEWSHOT if has_dev else 0) if options.num_fewshot is None else options.num_fewshot
        items: list[MMLUItem] = []
        read: list[Rows] = []
        for subject in subjects:
            header = f"The following are multiple choice questions (with answers) about {_title(subject)}.\n\n"
            if shots:
                dev = data.read(_split(subject, "dev"))
                read.append(dev)
                if len(dev.rows) < shots:
                    raise DataError(f"{dev.name}: {len(dev.rows)} rows; expected num_fewshot={shots} or more")
                header += "".join(f"{_question(row)} {_LETTERS[_answer(row)]}\n\n" for row in dev.rows[:shots])
            test = data.read(_split(subject, "test"))
            read.append(test)
            items += (
                MMLUItem(subject=subject, context=header + _question(row), answer=_answer(row))
                for row in select(test.rows, options)
            )
        return Loaded(items=tuple(items), num_fewshot=shots, data_sha256=hashes(*read))

    def requests(self, item: MMLUItem) -> list[Continuation]:
        return [Continuation(context=item.context, continuation=f" {letter}") for letter in _LETTERS]

    def metrics(self, items: Sequence[MMLUItem], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        return {"acc": accuracy(_is_right(items, scores))}

    def groups(self, items: Sequence[MMLUItem], scores: Sequence[Sequence[ContinuationScore]]) -> dict[str, Metric]:
        """Returns subject -> accuracy."""
        by_subject: dict[str, list[bool]] = {}
        for item, right in zip(items, _is_right(items, scores), strict=True):
            by_subject.setdefault(item.subject, []).append(right)
        return {subject: accuracy(right) for subject, right in by_subject.items()}


def _is_right(items: Sequence[MMLUItem], scores: Sequence[Sequence[ContinuationScore]]) -> list[bool]:
    logprobs = [[score.logprob for score in found] for found in scores]
    return [found.index(max(found)) == item.answer for item, found in zip(items, logprobs, strict=True)]


def _split(subject: str, split: str) -> Split:
    return Split(
        file=f"mmlu/{subject}_{split}.csv",
        dataset=_DATASET,
        config=subject,
        split=split,
        columns=("question", *_LETTERS, "answer"),
    )


def _title(subject: str) -> str:
    return subject.replace("_", " ")


def _question(row: Row) -> str:
    choices = row.texts("choices", least=4) if "choices" in row else tuple(row.text(letter) for letter in _LETTERS)
    if len(choices) != len(_LETTERS):
        raise row.error(f"{len(choices)} choices; expected {len(_LETTERS)}")
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return "\n".join([row.text("question").strip(), *lines, "Answer:"])


def _answer(row: Row) -> int:
    """Returns the index of the correct choice. The row has an index, or a letter as in the data's first release."""
    letter = row.values.get("answer")
    if isinstance(letter, str) and letter.strip() in tuple(_LETTERS):
        return _LETTERS.index(letter.strip())
    return row.index("answer", len(_LETTERS))
