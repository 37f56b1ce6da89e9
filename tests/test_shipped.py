"""Shipped files are found, and importing the package loads little."""

from __future__ import annotations

from pathlib import Path

import pytest

import ryzjax
from ryzjax import shipped


def test_from_a_checkout() -> None:
    assert shipped.shipped_path("sharding/tp.toml").is_file()
    assert shipped.shipped_path("serve/cpu.toml").is_file()


def test_from_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ryzjax" / "_configs").mkdir(parents=True)
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "ryzjax" / "shipped.py"))
    assert shipped.shipped_path("serve/cpu.toml") == tmp_path.resolve() / "ryzjax" / "_configs" / "serve" / "cpu.toml"


def test_lazy_names() -> None:
    from ryzjax.serving.messages.sampling_params import SamplingParams

    assert ryzjax.SamplingParams is SamplingParams
    assert ryzjax.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ryzjax.Nothing  # noqa: B018
