"""The frozen messages that callers and the engine thread exchange, and what callers get back.

    caller -> engine   EngineRequest, or abort(request_id)
    engine -> caller   TokenEvent, one per sequence and step
    caller gets        RequestOutput (whole), or StreamDelta (as it grows); EmbeddingOutput

The engine knows token ids only: text, stop strings and `n` are the caller side's business (`frontend.py`).
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
      request_id: unique among the requests in flight.
      prompt_token_ids: at least one token.
      params: sampling settings; `n`, `stop` and `prompt_logprobs` are ignored here.
      stop_token_ids: every id that ends the sequence (end-of-sequence ids included unless ignored).
      max_new_tokens: most tokens to generate; prompt plus this fits the context. 0, for a sequence that ends with
        its prompt, only with `prompt_logprobs` or `pooling`.
      seed: 64-bit seed of the sequence's random stream.
      arrival_s: `time.monotonic()` when the caller sent it.
      prompt_logprobs: None, or how many alternatives to report beside each prompt token but the first.
      pooling: None, or how the prompt's hidden states become one vector; nothing is generated then.
      adapter: the version of an adapter that it runs with, from its first token to its last; None for the model alone.
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
      rank: how many tokens are at least as likely (1 = the likeliest).
      top: the `logprobs` likeliest (token id, logprob), likeliest first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptScores:
    """Log-probabilities of a run of prompt tokens, as arrays: the caller's thread makes objects of them.

    Attributes:
      token_ids: int32 [N].
      logprobs: float32 [N].
      ranks: int32 [N], from 1.
      top_tokens, top_logprobs: [N, `prompt_logprobs`], likeliest first.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    top_tokens: np.ndarray
    top_logprobs: np.ndarray

    def tokens(self, start: int = 0, stop: int | None = None) -> list[TokenLogprobs]:
        """One object a token, of the tokens from `start` up to `stop`."""
        columns = (self.token_ids, self.logprobs, self.ranks, self.top_tokens, self.top_logprobs)
        return [
            TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=tuple(zip(tops, values, strict=True)))
            for token, logprob, rank, tops, values in zip(
                *(column[start:stop].tolist() for column in columns), strict=True
            )
        ]


class PromptLogprobs(Sequence[TokenLogprobs | None]):
    """Log-probabilities of the tokens of a prompt, None for the first one, which nothing precedes.

    They stay arrays until they are read: the objects of a long prompt with twenty alternatives a token take a hundred
    times the memory, and milliseconds that an event loop does not have.

    Args:
      scores: of the tokens after the first one, in order.
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
        """The entry of one token, or a list of several."""
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
    """What one step brought for one sequence.

    Attributes:
      request_id: whose.
      token_ids: new tokens, oldest first (empty on an abort or error).
      logprobs: one per token where the request asked for them, else None.
      finish_reason: set on the last event of the sequence.
      stop_token_id: the token that ended it, where one did.
      prompt_scores: of the prompt tokens after those of the event before, where the request asked for them.
      vector: float32 [E], the pooled hidden states, where the request asked for them; just before its end.
      error: what the caller is to raise, where finish_reason is "error".
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
    """What is new in one completion of a streamed request: text that cannot change any more.

    Attributes:
      index: which of the `n` completions.
      text: new text; complete UTF-8, and never part of a stop string.
      token_ids: new tokens (may be ahead of the text).
      logprobs: one per token, where asked for.
      finish_reason: set on the completion's last delta.
      stop_reason: the stop string or stop token id that ended it, where one did.
      prompt_logprobs: on the request's first delta, where asked for: one per prompt token, None for the first,
        which nothing precedes.
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
    """One completion: its text, tokens and why it ended."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(kw_only=True, slots=True)
class RequestOutput:
    """A finished request: the prompt and its `n` completions.

    `prompt_logprobs` has one entry a prompt token, None for the first; it is None where it was not asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddingOutput:
    """A prompt's vector.

    Attributes:
      request_id: whose.
      prompt: the text, or None where token ids were given.
      prompt_token_ids: its tokens.
      embedding: float32 [E], or [dimensions].
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: np.ndarray
