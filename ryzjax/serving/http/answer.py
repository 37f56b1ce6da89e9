"""What an answer is before an API spells it: finished choices, token counts, and the protocol of a writer.

`Generation` produces choices and deltas. One `AnswerFormat` object for each request turns them into bytes, so that the
routes and `EventStream` do not depend on how an API spells its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypedDict

from ryzjax.serving.messages.request import CompletionOutput, StreamDelta, TokenLogprobs

__all__ = ["AnswerFormat", "Choice", "Usage", "answer_size", "delta_size", "usage_of"]

_CHARS_PER_LOGPROB = 32


class Choice(NamedTuple):
    """A finished completion, with the log-probabilities of its prompt if the request asked for them."""

    completion: CompletionOutput
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


class Usage(TypedDict):
    """The token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Returns the token counts of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def answer_size(choices: Sequence[Choice]) -> int:
    """Estimates the size of a whole answer, in characters."""
    size = 0
    for completion, prompt_logprobs in choices:
        size += len(completion.text) + _logprobs_size(completion.logprobs) + _logprobs_size(prompt_logprobs)
    return size


def delta_size(delta: StreamDelta) -> int:
    """Estimates the size of the event of a delta, in characters."""
    return len(delta.text) + _logprobs_size(delta.logprobs) + _logprobs_size(delta.prompt_logprobs)


def _logprobs_size(tokens: Sequence[TokenLogprobs | None] | None) -> int:
    if not tokens:
        return 0
    last = tokens[-1]
    return _CHARS_PER_LOGPROB * len(tokens) * (1 + (len(last.top) if last is not None else 0))


class AnswerFormat(Protocol):
    """Writes the answer of one request in the format of its route."""

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """Yields a whole answer in pieces. Building a piece takes about a millisecond."""
        ...

    @property
    def opening_size(self) -> int:
        """The estimated size of `opening` for each choice, in characters."""
        ...

    def opening(self, choices: int) -> Iterator[bytes]:
        """Yields the events that precede the first delta, if there are any."""
        ...

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """Yields the events of one delta.

        A delta without text or an end gives no event. A delta with the prompt of several choices gives several.
        """
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """Returns the event with the token counts, which ends a stream if the request set `include_usage`."""
        ...
