"""plot_log: draws the losses and the learning rate of a run from its JSONL log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ryzjax.errors import DataError, LogError, MissingExtraError
from ryzjax.training.run.run_log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_log"]

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_TRAIN, _EVAL, _RATE = "#2f6fde", "#d9480f", "#0b7a75"

Rows = Sequence[Mapping[str, float | None]]


def plot_log(log: Path, png: Path, *, title: str) -> None:
    """Draws training loss (as logged, and smoothed), evaluation loss and learning rate over the steps.

    Args:
      log: A file that `JsonlLog` wrote.
      png: The picture to write, 1600 x 1000 pixels.
      title: Title of the picture, such as the run's name.

    Raises:
      DataError: The log cannot be read or has no loss.
      LogError: The picture cannot be written.
      MissingExtraError: matplotlib is not installed.
    """
    try:
        # Imported here because it is an optional extra. A separate Figure leaves the global state of pyplot untouched.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the loss plot needs matplotlib: pip install 'ryzjax[train]'") from error
    rows = read_log(log)
    if not any(row.get("loss") is not None for row in rows):
        raise DataError(f"{log}: no line has a loss; the run ended before its first logged step")
    figure = Figure(figsize=(10, 6.25), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, rows, title)
    try:
        figure.savefig(png)
    except OSError as error:
        raise LogError(f"{png}: cannot be written ({error.strerror}); check path, permissions and disk") from error


def _draw(figure: Figure, rows: Rows, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    has_rates = any(row.get("learning_rate") is not None for row in rows)
    panels = figure.subplots(
        2 if has_rates else 1, 1, sharex=True, height_ratios=[4, 1] if has_rates else [1], squeeze=False
    )
    loss, rate = panels[0, 0], panels[-1, 0]
    for axes in panels[:, 0]:
        _style(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_losses(loss, rows)
    loss.set_title(title, loc="left", pad=12, fontsize=14, fontweight="bold", color=_INK)
    if has_rates:
        steps, rates = _series(rows, "learning_rate")
        rate.plot(steps, rates, color=_RATE, linewidth=1.6, marker="o" if len(steps) == 1 else None, clip_on=False)
        rate.fill_between(steps, rates, color=_RATE, alpha=0.08, linewidth=0)
        rate.set_ylim(0, 1.15 * rates.max() or 1.0)
        rate.set_ylabel("learning rate", color=_INK)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    rate.set_xlabel("step", color=_INK)


def _draw_losses(axes: Axes, rows: Rows) -> None:
    steps, losses = _series(rows, "loss")
    smooth = _smoothed(steps, losses)
    axes.plot(steps, losses, color=_TRAIN, alpha=0.25, linewidth=0.9, label="train, as logged")
    dot = "o" if len(steps) == 1 else None
    axes.plot(
        steps,
        smooth,
        color=_TRAIN,
        linewidth=2.0,
        marker=dot,
        clip_on=dot is None,
        label=f"train, smoothed: {smooth[-1]:.4f} at the end",
    )
    eval_steps, eval_losses = _series(rows, "eval_loss")
    if len(eval_steps):
        best = int(eval_losses.argmin())
        text = f"eval: {eval_losses[best]:.4f} at best, step {eval_steps[best]:.0f}"
        axes.plot(
            eval_steps,
            eval_losses,
            color=_EVAL,
            linewidth=1.2,
            marker="o",
            markersize=4.5,
            clip_on=False,
            zorder=3,
            label=text,
        )
        axes.plot(
            eval_steps[best], eval_losses[best], color=_EVAL, marker="o", markersize=10, fillstyle="none", clip_on=False
        )
    # A few spikes must not flatten the rest of the curve.
    shown = np.concatenate([smooth, eval_losses, [np.quantile(losses, 0.002), np.quantile(losses, 0.998)]])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    every = np.concatenate([steps, eval_steps])
    axes.set_xlim(every.min(), max(every.max(), every.min() + 1))
    axes.set_ylabel("loss (nats per token)", color=_INK)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=10)


def _style(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)


def _series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps that have a value and the values, in ascending order of steps."""
    points = sorted((row["step"] or 0, value) for row in rows if (value := row.get(name)) is not None)
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _smoothed(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fits a line around each step, with Gaussian weights whose width is an eightieth of the run.

    Unlike a running mean, it does not lag behind a falling loss.
    """
    width = max((steps[-1] - steps[0]) / 80, 1e-9)
    firsts, ends = np.searchsorted(steps, steps - 4 * width), np.searchsorted(steps, steps + 4 * width, side="right")
    out = np.empty_like(values)
    for i, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        x, y = (steps[first:end] - steps[i]) / width, values[first:end]
        weights = np.exp(-0.5 * x * x)
        s0, s1, s2 = weights.sum(), (weights * x).sum(), (weights * x * x).sum()
        determinant = s0 * s2 - s1 * s1
        mean, slope_part = (weights * y).sum(), (weights * x * y).sum()
        # With too few neighbours for a line, take their mean.
        out[i] = (s2 * mean - s1 * slope_part) / determinant if determinant > 1e-6 * s0 * s0 else mean / s0
    return out
