"""SamplingFlags: the sampling settings of `generate` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["SamplingFlags"]

_TEMPERATURE = 0.8


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen. What no flag names is taken from the model's generation_config.json."""

    max_tokens: int = 256
    """Most tokens to generate."""
    temperature: float | None = None
    """0 is greedy; by default the model's, or else 0.8."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probability reaches this; by default the model's, or else 1."""
    top_k: int | None = None
    """Keep the k likeliest tokens, 0 keeps all; by default the model's, or else 0."""
    min_p: float | None = None
    """Drop tokens less likely than this share of the likeliest; by default the model's, or else 0."""
    sampling_seed: int | None = None
    """Makes the draw repeatable."""

    def params(self, defaults: SamplingDefaults) -> SamplingParams:
        """As SamplingParams, with the model's `defaults` where no flag is given; RequestError for a bad value."""
        chosen: SamplingDefaults = {"temperature": _TEMPERATURE, **defaults}
        if self.temperature is not None:
            chosen["temperature"] = self.temperature
        if self.top_p is not None:
            chosen["top_p"] = self.top_p
        if self.top_k is not None:
            chosen["top_k"] = self.top_k
        if self.min_p is not None:
            chosen["min_p"] = self.min_p
        return SamplingParams(max_tokens=self.max_tokens, seed=self.sampling_seed, **chosen)
