"""Results for people, as tables, and for programs, as JSON that says how they came about."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

import jax
from rich.table import Table

from ryzjax import __version__
from ryzjax.evaluation.divergence import Divergence
from ryzjax.evaluation.perplexity import Perplexity
from ryzjax.evaluation.statistics import Metric
from ryzjax.evaluation.tasks import TaskResult

__all__ = ["evaluation_table", "provenance", "result_json"]


def evaluation_table(
    title: str,
    *,
    tasks: Mapping[str, TaskResult] | None = None,
    perplexity: Perplexity | None = None,
    divergence: Divergence | None = None,
) -> Table:
    """One line a figure, with its 95% interval and what it is over."""
    table = Table(title=title, title_justify="left")
    for column in ("", "figure", "value", "95% interval", "n"):
        table.add_column(column, justify="left" if column in ("", "figure") else "right")
    for task in (tasks or {}).values():
        shots = f"{task.task}, {task.num_fewshot}-shot"
        for name, metric in task.metrics.items():
            table.add_row(shots, name, f"{metric.value:.4f}", _interval(metric.low, metric.high), str(metric.n))
    if perplexity is not None:
        one = perplexity
        table.add_row(
            f"{one.text}",
            "perplexity",
            f"{one.perplexity:.4f}",
            _interval(one.perplexity_low, one.perplexity_high),
            str(one.tokens),
        )
        table.add_row("", "bits per byte", f"{one.bits_per_byte:.4f}", "", "")
    if divergence is not None:
        two, half = divergence, 1.96 * divergence.kl_standard_error
        mean = _interval(two.mean_kl - half, two.mean_kl + half, digits=6)
        table.add_row("against the reference", "mean KL, nats", f"{two.mean_kl:.6f}", mean, str(two.tokens))
        table.add_row("", "99th percentile, maximum", f"{two.kl_p99:.6f}, {two.kl_max:.6f}", "", "")
        agreement = _interval(two.top1_low, two.top1_high)
        table.add_row("", "top-1 agreement", f"{two.top1_agreement:.4f}", agreement, "")
        table.add_row("", "perplexity, reference's", f"{two.perplexity:.4f}, {two.reference_perplexity:.4f}", "", "")
    return table


def result_json(result: TaskResult | Perplexity | Divergence | Metric) -> dict[str, object]:
    """A result's fields, nested, with null for what JSON has no number for."""
    fields = _finite(asdict(result))
    assert isinstance(fields, dict)
    return fields


def provenance() -> dict[str, object]:
    """Versions, devices and time, for a result file."""
    packages = ("jax", "jaxlib", "flax", "numpy", "tokenizers")
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "ryzjax": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "devices": {"backend": jax.default_backend(), "count": len(jax.devices()), "kinds": kinds},
    }


def _interval(low: float, high: float, *, digits: int = 4) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
