"""A histogram that is cheap enough for the engine thread: a bisection and three additions for each observation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Histogram"]


class Histogram:
    """Counts of values by bucket, as in Prometheus: bucket `le` counts the values <= le.

    It has no lock; its owner (`EngineMetrics`) holds one lock around every use. `prometheus_client.Histogram` takes a
    lock for each observation and cannot record a value many times at once, as a decode step of many rows needs.
    """

    __slots__ = ("_counts", "_sum", "_upper_bounds")

    def __init__(self, upper_bounds: Sequence[float]):
        bounds = list(upper_bounds)
        if bounds != sorted(set(bounds)) or not bounds:
            raise ValueError(f"upper_bounds={bounds}: expected at least one, strictly rising")
        self._upper_bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Records `value` `times` times."""
        self._counts[bisect_left(self._upper_bounds, value)] += times
        self._sum += value * times

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum

    def cumulative(self) -> list[tuple[str, float]]:
        """Returns (upper bound as text, count of values <= bound) for each bucket, ending with +Inf."""
        names = [*(repr(float(bound)) for bound in self._upper_bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))
