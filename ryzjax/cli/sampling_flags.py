"""SamplingFlags: the sampling settings of `generate` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.serving.sampling_params import SamplingParams

__all__ = ["SamplingFlags"]


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen."""

    max_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.8
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest."""
    sampling_seed: int | None = None
    """Makes the draw repeatable."""

    def params(self) -> SamplingParams:
        """As SamplingParams; RequestError where a value is out of range."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.sampling_seed,
        )
