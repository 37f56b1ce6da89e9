"""GSM8K (Cobbe et al., 2021): grade-school word problems whose answer is a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import DataError
from ryzjax.evaluation.statistics import Metric, accuracy
from ryzjax.evaluation.tasks.rows import DataSource, Row, Split
from ryzjax.evaluation.tasks.task import GenerationTask, Loaded, TaskOptions, hashes, select

__all__ = ["GSM8K", "GSM8KItem", "last_number", "marked_number"]

_TEST = Split(file="gsm8k_test.jsonl", dataset="openai/gsm8k", config="main", split="test")
_TRAIN = Split(file="gsm8k_train.jsonl", dataset="openai/gsm8k", config="main", split="train")
_FEWSHOT = 5
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class GSM8KItem:
    """One problem.

    Attributes:
      question: The problem.
      answer: The number that solves it.
      examples: (question, solution) of each few-shot example.
    """

    question: str
    answer: str
    examples: tuple[tuple[str, str], ...]


class GSM8K(GenerationTask[GSM8KItem]):
    """GSM8K with two metrics: exact_match_strict and exact_match_flexible.

    exact_match_strict takes the first number after #### as the answer, and exact_match_flexible takes the last number
    of the completion. Prompts, stop strings and the definition of a number are those of lm-evaluation-harness. The
    few-shot examples are the first rows of the train split: 5 by default, or none if there is no such split. With the
    option `chat`, they are turns of a conversation.
    """

    name = "gsm8k"
    stop = ("Question:", "</s>", "<|im_end|>")
    max_new_tokens = 256

    def load(self, data: DataSource, options: TaskOptions) -> Loaded[GSM8KItem]:
        shots = (_FEWSHOT if data.has(_TRAIN) else 0) if options.num_fewshot is None else options.num_fewshot
        test = data.read(_TEST)
        read, examples = [test], ()
        if shots:
            train = data.read(_TRAIN)
            read.append(train)
            if len(train.rows) < shots:
                raise DataError(f"{train.name}: {len(train.rows)} rows; expected num_fewshot={shots} or more")
            examples = tuple((row.text("question"), row.text("answer")) for row in train.rows[:shots])
        items = tuple(
            GSM8KItem(question=row.text("question"), answer=_solution(row), examples=examples)
            for row in select(test.rows, options)
        )
        return Loaded(items=items, num_fewshot=shots, data_sha256=hashes(*read))

    def prompt(self, item: GSM8KItem, tokenizer: Tokenizer, options: TaskOptions) -> list[int]:
        if options.chat:
            messages: list[dict[str, str]] = []
            for question, answer in item.examples:
                messages += [
                    {"role": "user", "content": _ask(question)},
                    {"role": "assistant", "content": answer},
                ]
            return tokenizer.apply_chat_template([*messages, {"role": "user", "content": _ask(item.question)}])
        examples = "".join(f"{_ask(question)} {answer}\n\n" for question, answer in item.examples)
        return tokenizer.encode(examples + _ask(item.question), add_special_tokens=options.add_special_tokens)

    def metrics(self, items: Sequence[GSM8KItem], completions: Sequence[str]) -> dict[str, Metric]:
        pairs = list(zip(items, completions, strict=True))
        return {
            "exact_match_strict": accuracy([marked_number(text) == item.answer for item, text in pairs]),
            "exact_match_flexible": accuracy([last_number(text) == item.answer for item, text in pairs]),
        }


def marked_number(text: str) -> str | None:
    """Returns the first number after ####, without commas and dollar signs; None if there is none."""
    found = _MARKED.search(text)
    return None if found is None else _plain(found[1])


def last_number(text: str) -> str | None:
    """Returns the last number of a text, without commas and dollar signs; None if there is none."""
    found = _NUMBER.findall(text)
    return _plain(found[-1]) if found else None


def _ask(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _plain(number: str) -> str:
    return number.strip().replace(",", "").replace("$", "").removesuffix(".")


def _solution(row: Row) -> str:
    _, mark, number = row.text("answer").rpartition("#### ")
    if not mark or not _plain(number):
        raise row.error("answer has no number after '#### '; expected a solution that ends with it")
    return _plain(number)
