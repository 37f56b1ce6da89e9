"""Samples: the content of a row, independent of the form it was written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Conversation", "Document", "PreferencePair", "Sample", "TextPair"]

Message = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages for the chat template.

    Attributes:
      messages: Messages, at least one of which, from `completion` on, is the assistant's.
      tools: JSON schemas of functions, or None.
      completion: Index of the first message that belongs to the answer, not the prompt. None if the row does not say;
        then the last assistant turn is the answer.
    """

    messages: Sequence[Message]
    tools: Sequence[Message] | None = None
    completion: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A prompt and its completion as text, without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to continue. `begins` and `ends` are False inside a longer text."""

    text: str
    begins: bool = True
    ends: bool = True


Answer = Conversation | TextPair


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt: the better one and the worse one."""

    chosen: Answer
    rejected: Answer


Sample = Conversation | TextPair | Document | PreferencePair
