"""Intervals and errors against published and direct figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ryzjax.evaluation.statistics import accuracy, mean_and_error, perplexity_metric, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), table I, method 3: Wilson's score interval without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 3, 1000, 10**6])
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_wilson_holds_its_figure(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1 and low < high


def test_accuracy() -> None:
    metric = accuracy([True, False, True, True])
    assert (metric.value, metric.n) == (0.75, 4)
    assert (metric.low, metric.high) == wilson_interval(3, 4)


def test_mean_and_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(values.sum() / 400)
    assert error == pytest.approx(math.sqrt(((values - mean) ** 2).sum() / 399 / 400))
    assert mean_and_error([5.0]) == (5.0, 0.0)


def test_perplexity() -> None:
    metric = perplexity_metric([1.0, 3.0])
    assert metric.value == pytest.approx(math.e**2)
    assert metric.low == pytest.approx(math.exp(2 - 1.95996398))
    assert metric.high == pytest.approx(math.exp(2 + 1.95996398))
    assert perplexity_metric([1e6, 1e6]).value == math.inf
