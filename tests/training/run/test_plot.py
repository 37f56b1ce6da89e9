"""The loss plot shows the curves and leaves no state in pyplot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ryzjax.errors import DataError, LogError, MissingExtraError
from ryzjax.training.run.plot import _smoothed, plot_log
from ryzjax.training.run.run_log import JsonlLog

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, steps: int, **more: float) -> None:
    log = JsonlLog(path)
    for step in range(1, steps + 1):
        log.log(step, {"loss": 1 + 2 / step} | more)
        if step % 10 == 0:
            log.log(step, {"eval_loss": 1.1 + 2 / step})
    log.close()


def pixels(png: Path) -> np.ndarray:
    image = pytest.importorskip("matplotlib.image").imread(png)
    return (255 * image[..., :3]).round().astype(int)


@pytest.mark.parametrize(("steps", "more"), [(50, {"learning_rate": 1e-4}), (50, {}), (1, {"learning_rate": 0.0})])
def test_the_curves_are_there(steps: int, more: dict[str, float], tmp_path: Path):
    write(tmp_path / "log.jsonl", steps, **more)
    plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png", title="A run")
    image = pixels(tmp_path / "loss.png")
    assert image.shape == (1000, 1600, 3)

    def drawn(color: str) -> int:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        return int((np.abs(image - rgb).sum(-1) < 12).sum())

    assert drawn("#2f6fde") > 50
    assert (drawn("#d9480f") > 50) == (steps >= 10)
    assert (drawn("#0b7a75") > 50) == bool(more)


def test_smoothing_neither_lags_nor_keeps_the_noise():
    steps = np.arange(1000.0)
    line = 3 - 0.002 * steps
    np.testing.assert_allclose(_smoothed(steps, line), line, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=1000)
    assert np.abs(_smoothed(steps, line + noise) - line)[50:-50].max() < 0.6
    np.testing.assert_allclose(_smoothed(np.array([5.0]), np.array([2.0])), [2.0])


def test_pyplot_is_not_imported(tmp_path: Path):
    write(tmp_path / "log.jsonl", 5)
    code = (
        "import sys, pathlib\nfrom ryzjax.training.run.plot import plot_log\n"
        "assert not any(name.startswith('matplotlib') for name in sys.modules)\n"
        "plot_log(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), title='x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    paths = [str(tmp_path / "log.jsonl"), str(tmp_path / "loss.png")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "log.jsonl", 0)
    with pytest.raises(DataError, match="no line has a loss"):
        plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png", title="")
    write(tmp_path / "log.jsonl", 2)
    with pytest.raises(LogError, match="cannot be written"):
        plot_log(tmp_path / "log.jsonl", tmp_path / "no" / "loss.png", title="")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"'ryzjax\[train\]'"):
        plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png", title="")
