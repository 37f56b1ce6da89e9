"""What a task makes: exchanges, rows of messages, and held-out items with a check of the answer."""

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
"""`{"role": ..., "content": ...}`, and `tool_calls` where the assistant calls tools."""

Check = Callable[[str], bool]
"""Whether a model's answer is right."""


class _Messages(TypedDict):
    messages: list[Message]


class ChatRow(_Messages, total=False):
    """A conversation to train on, and the tools offered in it."""

    tools: list[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer; `is_json` where any JSON with equal values is right."""

    question: str
    answer: str
    is_json: bool = False

    def messages(self) -> list[Message]:
        """The two turns."""
        return [user(self.question), assistant(self.answer)]

    def held_out(self) -> HeldOut:
        """The exchange as an item to test on."""
        check = json_equal(self.answer) if self.is_json else exact(self.answer)
        return HeldOut(messages=(user(self.question),), answer=self.answer, check=check)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A problem no training row holds.

    Attributes:
      messages: the conversation, up to the answer.
      answer: what a right answer looks like.
      check: whether a text is right.
      tools: offered, as JSON schemas; None where none are.
    """

    messages: Sequence[Message]
    answer: str
    check: Check
    tools: Sequence[Mapping[str, object]] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of row.

    Attributes:
      name: its key in `TASKS`.
      description: one sentence.
      row: makes a row.
      item: makes an item to test on, of the draw's split.
    """

    name: str
    description: str
    row: Callable[[Draw], ChatRow]
    item: Callable[[Draw], HeldOut]


def user(content: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A turn of the assistant."""
    return {"role": "assistant", "content": content}


def exact(answer: str) -> Check:
    """Right is the same text, but for white space around it."""
    return lambda text: text.strip() == answer


def json_equal(answer: str) -> Check:
    """Right is valid JSON with the same fields and values; an int is not its float, nor a number its text."""
    wanted = _canonical(json.loads(answer))

    def check(text: str) -> bool:
        try:
            return _canonical(json.loads(text)) == wanted
        except (ValueError, RecursionError):
            return False

    return check


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
