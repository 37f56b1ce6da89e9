"""Figures with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Metric", "accuracy", "mean_and_error", "perplexity_metric", "wilson_interval"]

_Z = 1.959963984540054
"""Two-sided 95% of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure and its 95% interval.

    Attributes:
      value: the figure.
      low, high: ends of the interval.
      n: items it is over.
    """

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95% interval of a proportion, after Wilson (1927): inside [0, 1] and sound for few items or extreme shares.

    Args:
      successes: from 0 to `n`.
      n: at least 1.
    """
    share = successes / n
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # Rounding could put an end just outside of the figure itself.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def accuracy(is_right: Sequence[bool]) -> Metric:
    """The share of right answers with Wilson's interval; at least one answer."""
    right, n = sum(is_right), len(is_right)
    low, high = wilson_interval(right, n)
    return Metric(value=right / n, low=low, high=high, n=n)


def mean_and_error(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, as of independent values; the error of one value is 0."""
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    return float(array.mean()), error


def perplexity_metric(nll: np.ndarray | Sequence[float]) -> Metric:
    """exp of the mean of negative log-likelihoods in nats; the interval is the mean's, normal, through exp."""
    mean, error = mean_and_error(nll)
    return Metric(value=_exp(mean), low=_exp(mean - _Z * error), high=_exp(mean + _Z * error), n=len(nll))


def _exp(x: float) -> float:
    """exp; infinite where it overflows, as the perplexity of an absurd model does."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
