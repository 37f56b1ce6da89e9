"""The frozen messages that callers and the engine thread exchange, and what callers get back.

    caller -> engine   EngineRequest, or abort(request_id)
    engine -> caller   TokenEvent, one per sequence and step
    caller gets        RequestOutput (whole), or StreamDelta (as it grows); EmbeddingOutput

The engine knows token ids only: text, stop strings and `n` are the caller side's business (`frontend.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ryzjax.serving.adapter import ServedAdapter
from ryzjax.serving.sampling_params import SamplingParams

__all__ = [
    "CompletionOutput",
    "EmbeddingOutput",
    "EngineRequest",
    "FinishReason",
    "Pooling",
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

    def tokens(self) -> list[TokenLogprobs]:
        """One object a token."""
        columns = (self.token_ids, self.logprobs, self.ranks, self.top_tokens, self.top_logprobs)
        return [
            TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=tuple(zip(tops, values, strict=True)))
            for token, logprob, rank, tops, values in zip(*(column.tolist() for column in columns), strict=True)
        ]


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
      error: message, where finish_reason is "error".
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    prompt_scores: PromptScores | None = None
    vector: np.ndarray | None = None
    error: str | None = None


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
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


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
    prompt_logprobs: list[TokenLogprobs | None] | None = None


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
