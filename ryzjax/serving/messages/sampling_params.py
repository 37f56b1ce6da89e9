"""SamplingParams: how the tokens of one request are chosen. Names and meanings follow vLLM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ryzjax.errors import RequestError

__all__ = ["MAX_LOGIT_BIAS", "MAX_LOGPROBS", "MAX_N", "MAX_STOPS", "MAX_STOP_CHARS", "SamplingParams"]

MAX_N = 128
"""The largest `n`. Each completion is a sequence, so a very large `n` would fill the queue."""
MAX_LOGPROBS = 20
"""The most alternatives of a token, which is the width of the compiled step's result."""
MAX_STOPS = 16
"""The most stop strings. Each of them is compared with every character of the output."""
MAX_STOP_CHARS = 1024
"""The length of the longest stop string, in characters."""
MAX_STOP_TOKEN_IDS = 64
"""The most stop token ids."""
MAX_LOGIT_BIAS = 16_384
"""The most tokens with a logit bias."""
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    Attributes:
      n: the number of completions for each prompt, sampled independently.
      temperature: the sampling temperature. 0 is greedy.
      top_k: keep the k most likely tokens. 0 or -1 keeps all.
      top_p: keep the smallest set of tokens whose probability reaches top_p, after top_k.
      min_p: drop tokens less likely than min_p times the most likely token.
      repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens in prompt or output.
      presence_penalty: subtracted once from tokens already in the output.
      frequency_penalty: subtracted per occurrence in the output.
      logit_bias: a value for each token id that is added to its logit first.
      seed: the seed of the request's random stream. It does not depend on other requests.
      max_tokens: the most tokens to generate. None generates until the context is full. 0 generates nothing and is
        allowed only with prompt_logprobs.
      min_tokens: end-of-sequence and stop tokens are banned before this many tokens, and a stop string that ends in
        their text does not end the output. A stop string that starts in their text and ends after it does.
      stop: strings that end the output. They are not part of it unless include_stop_str_in_output is set.
      stop_token_ids: token ids that end the output.
      ignore_eos: continue past the model's end-of-sequence tokens.
      logprobs: the number of alternatives to report for each generated token, or None.
      prompt_logprobs: the number of alternatives to report for each prompt token except the first, or None.
      skip_special_tokens: leave special tokens out of the text.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        # A frozen dataclass can normalize the type of a container only this way.
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

        _check_int("n", self.n, 1, MAX_N)
        _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_int("top_k", self.top_k, -1, _INT32_MAX)
        _check_float("top_p", self.top_p, 0.0, 1.0, exclude_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, exclude_low=True)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            # Without prompt_logprobs, a request for 0 tokens asks for nothing.
            _check_int("max_tokens", self.max_tokens, 1 if self.prompt_logprobs is None else 0, _INT32_MAX)
        _check_int("min_tokens", self.min_tokens, 0, _INT32_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens={self.min_tokens} is larger than max_tokens={self.max_tokens}; lower min_tokens",
                param="min_tokens",
            )
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.max_tokens == 0 and self.n > 1:
            raise RequestError(f"n={self.n} with max_tokens=0, which completes nothing; leave n at 1", param="n")
        if len(stops) > MAX_STOPS:
            raise RequestError(f"stop has {len(stops)} strings; at most {MAX_STOPS} are taken", param="stop")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise RequestError(f"stop contains {stop!r}; expected non-empty strings", param="stop")
            if len(stop) > MAX_STOP_CHARS:
                raise RequestError(
                    f"stop contains a string of {len(stop)} characters; at most {MAX_STOP_CHARS} are taken",
                    param="stop",
                )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} ids; at most {MAX_STOP_TOKEN_IDS} are taken",
                param="stop_token_ids",
            )
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, 0, _INT32_MAX)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} tokens; at most {MAX_LOGIT_BIAS} are taken", param="logit_bias"
            )
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, 0, _INT32_MAX)
            _check_float("logit_bias", bias, -100.0, 100.0)

    @property
    def needs_history(self) -> bool:
        """Whether the step needs the tokens that the request has seen, for penalties."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name}={value!r} is not an integer; expected {low} to {high}", param=name)
    if not low <= value <= high:
        raise RequestError(f"{name}={value} is out of range; expected {low} to {high}", param=name)


def _check_float(name: str, value: object, low: float, high: float, *, exclude_low: bool = False) -> None:
    bracket = "(" if exclude_low else "["
    expected = f"expected a number in {bracket}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name}={value!r} is not a number; {expected}", param=name)
    if not math.isfinite(value) or not low <= value <= high or (exclude_low and value == low):
        raise RequestError(f"{name}={value} is out of range; {expected}", param=name)
