"""Rounding to nearest: searched scales have less error, and every weight is within half a step of its grid."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.quant.grid import Grid, nearest_levels, round_to_grid, search_grid
from ryzjax.quant.hqq import improve_grid

RNG = np.random.default_rng(0)
HEAVY = jnp.asarray(RNG.standard_t(4, (32, 4, 64)), jnp.float32)
ONES = jnp.ones((4, 64))


def loss(w: jnp.ndarray, grid: Grid, importance: jnp.ndarray = ONES) -> np.ndarray:
    return np.asarray(jnp.sum(importance * (round_to_grid(w, grid, -8, 7) - w) ** 2, axis=-1))


def grid(w: jnp.ndarray, *, symmetric: bool = True, search: bool = True, importance: jnp.ndarray = ONES) -> Grid:
    return search_grid(w, importance, low=-8, high=7, symmetric=symmetric, scale_dtype="float32", search=search)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_searched_scale_is_never_worse_and_mostly_better(symmetric: bool):
    plain, searched = (loss(HEAVY, grid(HEAVY, symmetric=symmetric, search=search)) for search in (False, True))
    assert np.all(searched <= plain * (1 + 1e-6))
    assert searched.sum() < 0.95 * plain.sum()


def test_the_search_is_the_best_of_its_candidates():
    """Compares with a loop over the same candidates in numpy."""
    w = np.asarray(HEAVY, np.float64)
    best = np.full(w.shape[:2], np.inf)
    shrinks = [1.0, *np.linspace(1.1, 0.5, 40)]
    for shrink in [*shrinks, *(-shrink for shrink in shrinks)]:
        scale = np.abs(w).max(axis=-1) * shrink * 2 / 15
        rounded = np.clip(np.round(w / scale[..., None]), -8, 7) * scale[..., None]
        best = np.minimum(best, ((rounded - w) ** 2).sum(axis=-1))
    np.testing.assert_allclose(loss(HEAVY, grid(HEAVY)), best, rtol=1e-4)


def test_importance_moves_the_scale():
    importance = ONES.at[:, 0].set(1e4)
    weighted, plain = grid(HEAVY, importance=importance), grid(HEAVY)
    assert loss(HEAVY, weighted, importance).sum() < loss(HEAVY, plain, importance).sum()
    assert loss(HEAVY, plain).sum() < loss(HEAVY, weighted).sum()


def test_scales_are_rounded_to_the_stored_dtype():
    found = search_grid(HEAVY, ONES, low=-8, high=7, symmetric=True, scale_dtype="bfloat16")
    np.testing.assert_array_equal(found.scale, found.scale.astype(jnp.bfloat16).astype(jnp.float32))


def test_groups_of_zeros_and_of_one_sign():
    w = jnp.stack([jnp.zeros((4, 64)), 1 + jnp.abs(HEAVY[0]), -1 - jnp.abs(HEAVY[0])])
    for symmetric in (True, False):
        found = grid(w, symmetric=symmetric)
        assert bool(jnp.all(found.scale != 0)) and bool(jnp.all(jnp.isfinite(found.scale)))
        np.testing.assert_array_equal(round_to_grid(w, found, -8, 7)[0], 0)
        q = nearest_levels(w, found, -8, 7)
        assert q.min() >= -8 and q.max() <= 7
        assert bool(jnp.all((found.zero >= -8) & (found.zero <= 7)))
    assert loss(w, grid(w, symmetric=False)).sum() < 0.3 * loss(w, grid(w)).sum()


def test_int8_comes_back_within_half_a_step():
    found = search_grid(HEAVY, ONES, low=-128, high=127, symmetric=True, scale_dtype="float32", search=False)
    error = jnp.abs(round_to_grid(HEAVY, found, -128, 127) - HEAVY)
    assert bool(jnp.all(error <= found.scale[..., None] * 0.5001))


def test_hqq_loses_less_in_its_norm():
    skewed = jnp.asarray(RNG.exponential(1.0, (32, 4, 64)) - 0.3, jnp.float32)
    before = grid(skewed, symmetric=False, search=False)
    after = improve_grid(skewed, before, low=-8, high=7, scale_dtype="bfloat16")

    def norm(found: Grid) -> np.ndarray:
        return np.asarray(jnp.sum(jnp.abs(round_to_grid(skewed, found, -8, 7) - skewed) ** 0.7, axis=-1))

    assert np.all(norm(after) <= norm(before) * (1 + 1e-6))
    assert norm(after).sum() < 0.95 * norm(before).sum()
    np.testing.assert_array_equal(after.zero, jnp.round(after.zero))
    assert bool(jnp.all((after.zero >= -8) & (after.zero <= 7)))
