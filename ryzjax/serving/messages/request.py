"""The frozen messages that callers and the engine thread exchange, and what callers get back.

    caller -> engine   EngineRequest, or abort(request_id)
    engine -> caller   TokenEvent, one per sequence and step
    caller gets        RequestOutput (whole), or StreamDelta (as it grows); EmbeddingOutput

The engine knows only token ids. The frontend handles text, stop strings and `n`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np

from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = [
    "CompletionOutput",
    "EmbeddingOutput",
    "EngineRequest",
    "FinishReason",
    "Pooling",
    "PromptLogprobs",
    "PromptScores",
    "RequestOutput",
    "StreamDelta",
    "TokenEvent",
    "TokenLogprobs",
]

FinishReason = Literal["stop", "length", "abort", "error"]
Pooling = Literal["last", "mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One sequence to generate, to score or to embed.

    Attributes:
      request_id: an id that is unique among the requests in flight.
      prompt_token_ids: at least one token id.
      params: the sampling settings. `n`, `stop` and `prompt_logprobs` are ignored here.
      stop_token_ids: the ids that end the sequence, with the end-of-sequence ids unless they are ignored.
      max_new_tokens: the most tokens to generate. The prompt and these tokens fit the context. 0 is allowed only with
        `prompt_logprobs` or `pooling`, for a sequence that ends with its prompt.
      seed: the 64-bit seed of the sequence's random stream.
      arrival_s: `time.monotonic()` when the caller sent the request.
      prompt_logprobs: the number of alternatives to report for each prompt token except the first, or None.
      pooling: how the prompt's hidden states become one vector, or None. With pooling nothing is generated.
      adapter: the version of an adapter that the sequence uses from its first to its last token, or None.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    max_new_tokens: int
    seed: int
    arrival_s: float
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None
    adapter: ServedAdapter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of one position, from the raw logits (before penalties and temperature).

    Attributes:
      token_id: the chosen token.
      logprob: its log-probability (natural log).
      rank: the number of tokens that are at least as likely; 1 is the most likely token.
      top: the `logprobs` most likely tokens as (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptScores:
    """Log-probabilities of consecutive prompt tokens, as arrays. The caller's thread makes objects of them.

    Attributes:
      token_ids: int32 [N].
      logprobs: float32 [N].
      ranks: int32 [N], from 1.
      top_tokens, top_logprobs: [N, `prompt_logprobs`], most likely first.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    top_tokens: np.ndarray
    top_logprobs: np.ndarray

    def tokens(self, start: int = 0, stop: int | None = None) -> list[TokenLogprobs]:
        """Returns one object for each token from `start` up to `stop`."""
        columns = (self.token_ids, self.logprobs, self.ranks, self.top_tokens, self.top_logprobs)
        return [
            TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=tuple(zip(tops, values, strict=True)))
            for token, logprob, rank, tops, values in zip(
                *(column[start:stop].tolist() for column in columns), strict=True
            )
        ]


class PromptLogprobs(Sequence[TokenLogprobs | None]):
    """Log-probabilities of the tokens of a prompt. The first entry is None, because no token precedes the first.

    The values stay arrays until they are read. As objects, a long prompt with twenty alternatives a token would take a
    hundred times the memory, and milliseconds of an event loop's time.

    Args:
      scores: the scores of the tokens after the first one, in order.
    """

    def __init__(self, scores: Sequence[PromptScores]):
        self._scores = tuple(scores)
        self._length = 1 + sum(len(chunk.token_ids) for chunk in self._scores)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprobs | None]: ...

    def __getitem__(self, index: int | slice) -> TokenLogprobs | list[TokenLogprobs | None] | None:
        """Returns the entry of one token, or a list for a slice."""
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step == 1:
                return self._between(start, max(start, stop))
            return [self[position] for position in range(start, stop, step)]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(f"token {index} of a prompt of {self._length} tokens")
        return self._between(position, position + 1)[0]

    def __iter__(self) -> Iterator[TokenLogprobs | None]:
        yield None
        for chunk in self._scores:
            yield from chunk.tokens()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (list, tuple, PromptLogprobs)):
            return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as a list has none

    def _between(self, start: int, stop: int) -> list[TokenLogprobs | None]:
        found: list[TokenLogprobs | None] = [None] if start == 0 < stop else []
        first = 1
        for chunk in self._scores:
            size = len(chunk.token_ids)
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                found += chunk.tokens(low, high)
            first += size
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """The result of one step for one sequence.

    Attributes:
      request_id: the id of the sequence's request.
      token_ids: the new tokens, oldest first; empty after an abort or error.
      logprobs: one entry for each token if the request asked for them, otherwise None.
      finish_reason: set on the last event of the sequence.
      stop_token_id: the stop token that ended the sequence, or None.
      prompt_scores: the scores of the next prompt tokens if the request asked for them, otherwise None.
      vector: the pooled hidden states, float32 [E], in the event before the end of an embedding request.
      error: the exception that the caller must raise if finish_reason is "error".
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    prompt_scores: PromptScores | None = None
    vector: np.ndarray | None = None
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamDelta:
    """The new part of one completion of a streamed request. Its text cannot change any more.

    Attributes:
      index: the index of the completion, below `n`.
      text: new text without partial characters or parts of a stop string.
      token_ids: new tokens, which may be ahead of the text.
      logprobs: one entry for each token if the request asked for them, otherwise None.
      finish_reason: set on the completion's last delta.
      stop_reason: the stop string or stop token id that ended the completion, or None.
      prompt_logprobs: one entry for each prompt token, None for the first, on the request's first delta if the request
        asked for them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


@dataclass(kw_only=True, slots=True)
class CompletionOutput:
    """One completion: its text, its tokens and why it ended."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(kw_only=True, slots=True)
class RequestOutput:
    """A finished request: the prompt and its `n` completions.

    `prompt_logprobs` has one entry for each prompt token, None for the first, or is None if it was not requested.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddingOutput:
    """The embedding of a prompt.

    Attributes:
      request_id: the id of the request.
      prompt: the text, or None if the prompt was given as token ids.
      prompt_token_ids: the token ids of the prompt.
      embedding: float32 [E], or [dimensions].
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: np.ndarray
