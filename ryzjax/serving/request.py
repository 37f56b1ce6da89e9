"""The frozen messages that callers and the engine thread exchange, and what callers get back.

    caller -> engine   EngineRequest, or abort(request_id)
    engine -> caller   TokenEvent, one per sequence and step
    caller gets        RequestOutput (whole), or StreamDelta (as it grows)

The engine knows token ids only: text, stop strings and `n` are the caller side's business (`frontend.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ryzjax.serving.sampling_params import SamplingParams

__all__ = [
    "CompletionOutput",
    "EngineRequest",
    "FinishReason",
    "RequestOutput",
    "StreamDelta",
    "TokenEvent",
    "TokenLogprobs",
]

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One sequence to generate.

    Attributes:
      request_id: unique among the requests in flight.
      prompt_token_ids: at least one token.
      params: sampling settings; `n` and `stop` are ignored here.
      stop_token_ids: every id that ends the sequence (end-of-sequence ids included unless ignored).
      max_new_tokens: most tokens to generate; prompt plus this fits the context.
      seed: 64-bit seed of the sequence's random stream.
      arrival_s: `time.monotonic()` when the caller sent it.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    max_new_tokens: int
    seed: int
    arrival_s: float


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
class TokenEvent:
    """What one step brought for one sequence.

    Attributes:
      request_id: whose.
      token_ids: new tokens, oldest first (empty on an abort or error).
      logprobs: one per token where the request asked for them, else None.
      finish_reason: set on the last event of the sequence.
      stop_token_id: the token that ended it, where one did.
      error: message, where finish_reason is "error".
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
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
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


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
    """A finished request: the prompt and its `n` completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
