"""The commands `ryzjax bench serve` and `ryzjax bench offline`."""

from __future__ import annotations

from ryzjax.bench.offline import BenchOffline
from ryzjax.bench.serve import BenchServe

__all__ = ["BenchOffline", "BenchServe"]
