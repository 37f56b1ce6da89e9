"""The progress display, with a terminal and without one."""

from __future__ import annotations

import io

import pytest

from ryzjax.training.run.progress import RunProgress, figures_text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_figures():
    figures = {"loss": 1.23456, "learning_rate": 2e-4, "tokens_per_s": 12345.0, "mfu": 0.41, "memory_bytes": 3.8e9}
    assert figures_text(figures) == "loss 1.2346  lr 2.00e-04  12.3k tok/s  MFU 41.0%  3.80 GB"
    assert figures_text({"tokens_per_s": 1234.0, "tokens": 5.0}) == "1,234 tok/s"


def test_lines_come_at_a_sensible_pace():
    clock, stream = Clock(), io.StringIO()
    progress = RunProgress(total_steps=100, resumed_step=40, stream=stream, clock=clock)
    clock.now += 30  # The first step compiles.
    for step in range(41, 101):
        progress.log(step, {"loss": 2.0} | ({"eval_loss": 1.5} if step == 50 else {}))
        clock.now += 1
    progress.message("saved [step 100]")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 41/100  loss 2.0000  (mean 2.0000)  0:30",
        "step 50/100  loss 2.0000  (mean 2.0000)  eval 1.5000  0:39 < 0:50",
        "step 70/100  loss 2.0000  (mean 2.0000)  eval 1.5000  0:59 < 0:30",
        "step 90/100  loss 2.0000  (mean 2.0000)  eval 1.5000  1:19 < 0:10",
        "step 100/100  loss 2.0000  (mean 2.0000)  eval 1.5000  1:29",
        "saved [step 100]",
    ]


def test_the_loss_is_the_logs_and_its_mean_says_that_it_is_one():
    stream, clock = io.StringIO(), Clock()
    progress = RunProgress(total_steps=2, stream=stream, clock=clock)
    progress.log(1, {"loss": 3.0})
    progress.log(2, {"loss": 1.0})
    first, second = stream.getvalue().splitlines()
    assert "loss 3.0000  (mean 3.0000)" in first
    assert f"loss 1.0000  (mean {(0.9 * 3 + 1) / 1.9:.4f})" in second


@pytest.mark.parametrize("columns", ["150", "70"])
def test_a_terminal_has_a_bar(columns: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = RunProgress(total_steps=100, resumed_step=40, stream=stream)
    progress.log(60, {"loss": 2.0, "learning_rate": 2e-4, "tokens_per_s": 99_000.0, "mfu": 0.4, "memory_bytes": 9e9})
    progress.message("saved [step 60]")
    progress.close()
    shown = stream.getvalue()
    assert "60/100" in shown and "loss 2.0000" in shown and "saved [step 60]" in shown
    assert ("9.00 GB" in shown) == (columns == "150")
