"""Figures with their statistical uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Metric", "accuracy", "mean_and_error", "perplexity_metric", "wilson_interval"]

_Z = 1.959963984540054
"""The two-sided 95% quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure and its 95% interval.

    Attributes:
      value: The figure.
      low, high: The ends of the interval.
      n: The number of items behind the figure.
    """

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Returns Wilson's 95% interval of a proportion (Wilson, 1927).

    It is inside [0, 1], and valid for few items and for extreme proportions.

    Args:
      successes: The number of successes, from 0 to `n`.
      n: The number of items, at least 1.
    """
    share = successes / n
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # Rounding could put an end of the interval just past the proportion itself.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def accuracy(is_right: Sequence[bool]) -> Metric:
    """Returns the share of correct answers with Wilson's interval. There must be at least one answer."""
    right, n = sum(is_right), len(is_right)
    low, high = wilson_interval(right, n)
    return Metric(value=right / n, low=low, high=high, n=n)


def mean_and_error(values: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, for independent values. The error of a single value is 0."""
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    return float(array.mean()), error


def perplexity_metric(nll: np.ndarray | Sequence[float]) -> Metric:
    """Returns exp of the mean negative log-likelihood, in nats. The interval is exp of the mean's normal interval."""
    mean, error = mean_and_error(nll)
    return Metric(value=_exp(mean), low=_exp(mean - _Z * error), high=_exp(mean + _Z * error), n=len(nll))


def _exp(x: float) -> float:
    """Returns exp(x), or infinity if it overflows, as for the perplexity of an untrained or broken model."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
