"""The products of a task: exchanges, rows of messages, and held-out items with a check of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ryzjax.data.synthetic.draw import Draw

__all__ = [
    "ChatRow",
    "Check",
    "Exchange",
    "HeldOut",
    "Message",
    "Task",
    "assistant",
    "exact",
    "json_equal",
    "user",
]

Message = dict[str, object]
"""`{"role": ..., "content": ...}`, with `tool_calls` if the assistant calls tools."""

Check = Callable[[str], bool]
"""A function that returns whether a model's answer is right."""


class _Messages(TypedDict):
    messages: list[Message]


class ChatRow(_Messages, total=False):
    """A conversation to train on, and the tools that it offers."""

    tools: list[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer. With `is_json`, any JSON with equal values is right."""

    question: str
    answer: str
    is_json: bool = False

    def messages(self) -> list[Message]:
        """Returns the two turns."""
        return [user(self.question), assistant(self.answer)]

    def held_out(self) -> HeldOut:
        """Returns the exchange as a held-out item."""
        check = json_equal(self.answer) if self.is_json else exact(self.answer)
        return HeldOut(messages=(user(self.question),), answer=self.answer, check=check)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A problem that no training row contains.

    Attributes:
      messages: the conversation up to the answer.
      answer: an example of a right answer.
      check: returns whether a text is a right answer.
      tools: the tools offered, as JSON schemas, or None.
    """

    messages: Sequence[Message]
    answer: str
    check: Check
    tools: Sequence[Mapping[str, object]] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of row and of held-out item.

    Attributes:
      name: the key of the task in `TASKS`.
      description: one sentence.
      row: makes a row.
      item: makes a held-out item of the draw's split.
    """

    name: str
    description: str
    row: Callable[[Draw], ChatRow]
    item: Callable[[Draw], HeldOut]


def user(content: str) -> Message:
    """Returns a turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Returns a turn of the assistant."""
    return {"role": "assistant", "content": content}


def exact(answer: str) -> Check:
    """Returns a check that accepts the same text, ignoring white space around it."""
    return lambda text: text.strip() == answer


def json_equal(answer: str) -> Check:
    """Returns a check that accepts JSON with the same fields and values. 1, 1.0 and "1" are different values."""
    wanted = _canonical(json.loads(answer))

    def check(text: str) -> bool:
        try:
            return _canonical(json.loads(text)) == wanted
        except (ValueError, RecursionError):
            return False

    return check


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
