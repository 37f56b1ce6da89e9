"""What a row asks for, whatever form it was written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Conversation", "Document", "PreferencePair", "Sample", "TextPair"]

Message = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages for the chat template.

    Attributes:
      messages: with at least one of the assistant's from `completion` on.
      tools: JSON schemas of functions, or None.
      completion: index of the first message that is answer and not prompt; None where a row does not say, and its
        last assistant turn is the answer.
    """

    messages: Sequence[Message]
    tools: Sequence[Message] | None = None
    completion: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A text and what is to follow it, without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """Text to continue; `begins` and `ends` are False within a longer one."""

    text: str
    begins: bool = True
    ends: bool = True


Answer = Conversation | TextPair


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, the better one first."""

    chosen: Answer
    rejected: Answer


Sample = Conversation | TextPair | Document | PreferencePair
