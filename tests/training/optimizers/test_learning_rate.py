"""Learning rates against hand-worked numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.training.optimizers.learning_rate import make_schedule


def rates(name: str, **options: float) -> np.ndarray:
    settings = {"peak": 1.0, "total_steps": 20, "warmup_steps": 4} | options
    return np.asarray(jax.jit(jax.vmap(make_schedule(name, **settings)))(np.arange(settings["total_steps"] + 2)))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_rises_to_the_peak_and_no_step_is_lost(name: str):
    values = rates(name)
    np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert (values[:20] > 0).all() and (np.diff(values[4:20]) <= 0).all()


def test_the_decays():
    np.testing.assert_allclose(rates("constant", warmup_steps=0), np.ones(22))
    np.testing.assert_allclose(rates("linear")[[4, 12, 20, 21]], [1, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rates("linear", min_ratio=0.2)[[12, 20]], [0.6, 0.2], atol=1e-6)
    np.testing.assert_allclose(rates("cosine", min_ratio=0.1)[[4, 8, 12, 20]], [1, 0.86819805, 0.55, 0.1], atol=1e-6)
    np.testing.assert_allclose(
        rates("wsd", decay_ratio=0.2)[[4, 16, 17, 18, 20]], [1, 1, 0.5, 1 - 0.5**0.5, 0], atol=1e-6
    )


@pytest.mark.parametrize("options", [{"total_steps": 0}, {"warmup_steps": 20}, {"warmup_steps": -1}])
def test_what_cannot_be(options: dict[str, int]):
    with pytest.raises(ConfigError, match=r"total_steps=0|warmup_steps=.* of 20 steps"):
        rates("linear", **options)
