"""Reports results: as tables for people, and as JSON with their provenance for programs."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.box import SIMPLE
from rich.table import Table

from ryzjax import __version__
from ryzjax.checkpoint.certificate import certificate_summary
from ryzjax.evaluation.activation_cost import ActivationCost
from ryzjax.evaluation.divergence import Divergence
from ryzjax.evaluation.perplexity import Perplexity
from ryzjax.evaluation.statistics import Metric
from ryzjax.evaluation.tasks import TaskResult

if TYPE_CHECKING:
    from ryzjax.evaluation.certificate import Check

__all__ = ["certificate_table", "check_table", "evaluation_table", "provenance", "result_json"]


def evaluation_table(
    title: str,
    *,
    tasks: Mapping[str, TaskResult] | None = None,
    perplexity: Perplexity | None = None,
    divergence: Divergence | None = None,
    activation_cost: ActivationCost | None = None,
) -> Table:
    """Returns a table with one line for each figure, its 95% interval, and the number of items or tokens behind it.

    Args:
      title: The title, which names the model and its activations.
      tasks: Task name -> result.
      perplexity: The perplexity on a text.
      divergence: The divergence from the reference. It is that of `activation_cost.int8` where both are given.
      activation_cost: The cost of int8 activations, which the model ran with; None if it ran with others.
    """
    # Without frames, a line fits in a terminal of 80 columns.
    table = Table(title=title, title_justify="left", box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "figure", "value", "95% interval", "n"):
        table.add_column(column, justify="left" if column in ("", "figure") else "right", no_wrap=True)
    for task in (tasks or {}).values():
        for name, metric in task.metrics.items():
            where = f"{task.task}, {task.num_fewshot}-shot" if task.num_fewshot else task.task
            table.add_row(where, name, *_numbers(metric.value, metric.low, metric.high), f"{metric.n:,}")
    cut = [f"{task.num_cut:,} prompts of {task.task}" for task in (tasks or {}).values() if task.num_cut]
    if cut:
        table.caption = f"{', '.join(cut)} were cut on the left to fit the context"
    if perplexity is not None:
        one = perplexity
        figures = _numbers(one.perplexity, one.perplexity_low, one.perplexity_high)
        table.add_row(Path(one.text).name, "perplexity", *figures, f"{one.tokens:,}")
        table.add_row("", "bits per byte", _number(one.bits_per_byte))
    if divergence is not None:
        two, half = divergence, 1.96 * divergence.kl_standard_error
        mean = _numbers(two.mean_kl, two.mean_kl - half, two.mean_kl + half)
        table.add_row("reference", "mean KL, nats", *mean, f"{two.tokens:,}")
        table.add_row("", "KL, 99th percentile", _number(two.kl_p99))
        table.add_row("", "KL, maximum", _number(two.kl_max))
        table.add_row("", "top-1 agreement", *_numbers(two.top1_agreement, two.top1_low, two.top1_high))
        table.add_row("", "perplexity", _number(two.perplexity))
        table.add_row("", "reference's perplexity", _number(two.reference_perplexity))
    if activation_cost is not None:
        _add_cost(table, activation_cost)
    return table


def _add_cost(table: Table, cost: ActivationCost) -> None:
    """Adds the figures of the same model with bfloat16 activations, and the differences."""
    plain, integer = cost.bf16, cost.int8
    half = 1.96 * plain.kl_standard_error
    table.add_row("with bf16", "mean KL, nats", *_numbers(plain.mean_kl, plain.mean_kl - half, plain.mean_kl + half))
    table.add_row("", "top-1 agreement", *_numbers(plain.top1_agreement, plain.top1_low, plain.top1_high))
    table.add_row("", "perplexity", _number(plain.perplexity))
    half = 1.96 * cost.added_kl_standard_error
    interval = _numbers(cost.added_kl, cost.added_kl - half, cost.added_kl + half)
    table.add_row("int8 adds", "mean KL, nats", *interval)
    share = "-" if cost.share_of_kl is None else f"{cost.share_of_kl:.1%}"
    table.add_row("", "share of weights' KL", share)
    table.add_row("", "top-1 agreement", f"{integer.top1_agreement - plain.top1_agreement:+.4f}")
    table.add_row("", "perplexity", _number(integer.perplexity - plain.perplexity))


def result_json(result: TaskResult | Perplexity | Divergence | ActivationCost | Metric) -> dict[str, object]:
    """Returns the fields of a result, nested. Numbers that JSON cannot represent (NaN, infinity) become None."""
    fields = _finite(asdict(result))
    assert isinstance(fields, dict)
    return fields


def provenance() -> dict[str, object]:
    """Returns versions, devices and the current time, for a result file."""
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


def _number(value: float) -> str:
    """Formats a number with 4 decimals below 10, with 2 below 1e5, and with 3 digits outside 0.001 to 1e5."""
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if 10 <= abs(value) < 1e5 else f"{value:.2e}"


def certificate_table(certificate: Mapping[str, object]) -> Table:
    """Returns a table with the main figures of a quantized model's certificate."""
    table = Table(title="certificate", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("")
    for name, value in certificate_summary(certificate).items():
        if isinstance(value, Mapping):
            for inner, figure in value.items():
                shown = _number(figure) if isinstance(figure, float) else str(figure)
                table.add_row(f"{name.replace('_', ' ')}: {inner.replace('_', ' ')}", shown)
        elif value is not None:
            table.add_row(name.replace("_", " "), _number(value) if isinstance(value, float) else str(value))
    if not (certificate.get("measured") or {}):
        table.add_row("measured", "nothing")
    return table


def check_table(checks: Sequence[Check]) -> Table:
    """Returns a table of certified and measured figures. Of files and other values, it lists only those that differ."""
    table = Table(title="certificate, verified", title_justify="left", box=SIMPLE, show_edge=False)
    for column in ("figure", "certified", "measured", ""):
        table.add_column(column, overflow="fold")
    for check in checks:
        if check.not_checked is not None:
            table.add_row(check.name, _short(check.certified), "", f"not checked: {check.not_checked}")
        elif not check.is_same or isinstance(check.certified, float):
            verdict = "" if check.is_same else "DIFFERS"
            table.add_row(check.name, _short(check.certified), _short(check.measured), verdict)
    return table


def _short(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)[:24]


def _numbers(value: float, low: float, high: float) -> tuple[str, str]:
    return _number(value), f"{_number(low)} to {_number(high)}"


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
