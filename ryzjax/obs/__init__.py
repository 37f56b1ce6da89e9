"""Metrics and structured logs. Imports only the errors of RyzJAX."""

from __future__ import annotations

from ryzjax.obs.logs import setup_logging
from ryzjax.obs.metrics import EngineMetrics, RequestStats

__all__ = ["EngineMetrics", "RequestStats", "setup_logging"]
