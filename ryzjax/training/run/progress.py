"""RunProgress: shows a run on stderr, as a progress bar on a terminal and as occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

__all__ = ["RunProgress", "figures_text"]

_LINE_EVERY_S = 20.0
"""Seconds between lines without a terminal. The first, the last and lines with an evaluation are printed at once."""

_SMOOTHING = 0.9
"""Weight of the previous mean loss in the next one."""


class RunProgress:
    """A `RunLog` for people: step, loss and its mean, learning rate, tokens/s, MFU, memory and time left.

    The loss is the step's own, as in the log files. The mean is exponential, over about the last ten logged losses.

    Args:
      total_steps: Updates of the whole run.
      resumed_step: Updates done before this process.
      stream: Stream to write to; stderr by default.
      clock: Returns the time in seconds.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        resumed_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._clock = total_steps, clock
        self._stream = sys.stderr if stream is None else stream
        self._mean_loss = _Smoothed()
        self._began = (clock(), resumed_step)
        # The first step compiles, so the speed is measured over the steps after it.
        self._first: tuple[float, int] | None = None
        self._last_line_s: float | None = None
        self._eval_loss: float | None = None
        self._bar: Progress | None = None
        console = Console(file=self._stream)
        if console.is_terminal:
            width = 20 if console.width >= 120 else 6
            columns = (MofNCompleteColumn(), BarColumn(bar_width=width), TimeElapsedColumn(), TextColumn("<"))
            # A narrow terminal cuts off the last figures, not the bar and the times.
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            figures = TextColumn("{task.fields[figures]}", markup=False, table_column=rest)
            self._bar = Progress(*columns, TimeRemainingColumn(), figures, console=console, expand=True)
            self._task = self._bar.add_task("", total=total_steps, completed=resumed_step, figures="compiling the step")
            self._bar.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Shows the figures after `step` updates. Unknown figures are left out."""
        shown = dict(figures)
        if "loss" in shown:
            shown["mean_loss"] = self._mean_loss.after(shown["loss"])
        if "eval_loss" in shown:
            self._eval_loss = shown["eval_loss"]
        elif self._eval_loss is not None:
            shown["eval_loss"] = self._eval_loss
        now = self._clock()
        self._first = self._first or (now, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures_text(shown))
            return
        due = self._last_line_s is None or now - self._last_line_s >= _LINE_EVERY_S
        if due or step >= self._total or "eval_loss" in figures:
            self._last_line_s = now
            print(
                f"step {step}/{self._total}  {figures_text(shown)}  {self._times(now, step)}",
                file=self._stream,
                flush=True,
            )

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(text))
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Stops the bar and leaves its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _times(self, now: float, step: int) -> str:
        assert self._first is not None
        since, first = self._first
        elapsed = _duration(now - self._began[0])
        if step >= self._total or step <= first:
            return elapsed
        return f"{elapsed} < {_duration((now - since) / (step - first) * (self._total - step))}"


def figures_text(figures: Mapping[str, float]) -> str:
    """Returns the figures as one line: "loss 1.2345  (mean 1.3)  lr 2.00e-04  12.3k tok/s  3.8 GB"."""
    writers: Mapping[str, Callable[[float], str]] = {
        "loss": lambda x: f"loss {x:.4f}",
        "mean_loss": lambda x: f"(mean {x:.4f})",
        "eval_loss": lambda x: f"eval {x:.4f}",
        "learning_rate": lambda x: f"lr {x:.2e}",
        "grad_norm": lambda x: f"grad {x:.2f}",
        "tokens_per_s": lambda x: f"{x / 1000:.1f}k tok/s" if x >= 10_000 else f"{x:,.0f} tok/s",
        "mfu": lambda x: f"MFU {100 * x:.1f}%",
        "memory_bytes": lambda x: f"{x / 1e9:.2f} GB",
    }
    return "  ".join(write(figures[name]) for name, write in writers.items() if name in figures)


class _Smoothed:
    """An exponential mean, corrected for its start at zero."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def after(self, value: float) -> float:
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * value
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        return self._sum / self._weight


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
