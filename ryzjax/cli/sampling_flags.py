"""SamplingFlags: the sampling flags of `ryzjax generate` and `ryzjax chat`."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["SamplingFlags"]

_TEMPERATURE = 0.8


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen. The model's generation_config.json gives the defaults, if it has one."""

    max_tokens: int = 256
    """Largest number of tokens to generate."""
    temperature: float | None = None
    """Sampling temperature; 0 always takes the likeliest token. By default the model's own value, or 0.8 if it has
    none."""
    top_p: float | None = None
    """Sample from the smallest set of tokens whose probabilities add up to this. By default the model's own value, or
    1 (all tokens)."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens; 0 means all. By default the model's own value, or 0."""
    min_p: float | None = None
    """Drop tokens whose probability is less than this fraction of the likeliest token's. By default the model's own
    value, or 0."""
    sampling_seed: int | None = None
    """Seed of the random draws, which makes them repeatable. By default each run draws another one."""

    def params(self, defaults: SamplingDefaults) -> SamplingParams:
        """Returns the settings, with the model's `defaults` for flags that are not given.

        Raises:
          RequestError: A value is out of range.
        """
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
