"""Round to nearest, with scales that lose least: the scale of a group is shrunk as long as clipping pays.

All functions see a weight as groups, float32 [N, G, g] (G groups of g in features).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["Grid", "nearest_levels", "round_to_grid", "search_grid"]

_SHRINKS = 40
_SMALLEST_SHRINK, _LARGEST_SHRINK = 0.5, 1.1
"""Of the range that just holds a group. Above 1 the grid's own rounding may still gain: there is one level more on one
side than on the other."""


class Grid(NamedTuple):
    """The values a group can have: scale * (q - zero), q from `low` to `high`.

    Attributes:
      scale: float32 [N, G], not zero. Negative where the side with one level more is better given to positive weights.
      zero: float32 [N, G] whole numbers; 0 where the grid is symmetric.
    """

    scale: Array
    zero: Array


def nearest_levels(w: Float[Array, "N G g"], grid: Grid, low: int, high: int) -> Float[Array, "N G g"]:
    """The q of each weight, as float32 whole numbers."""
    return jnp.clip(jnp.round(w / grid.scale[..., None]) + grid.zero[..., None], low, high)


def round_to_grid(w: Float[Array, "N G g"], grid: Grid, low: int, high: int) -> Float[Array, "N G g"]:
    """Each weight rounded to a value of its grid."""
    return (nearest_levels(w, grid, low, high) - grid.zero[..., None]) * grid.scale[..., None]


@partial(jax.jit, static_argnames=("low", "high", "symmetric", "scale_dtype", "search"))
def search_grid(
    w: Float[Array, "N G g"],
    importance: Float[Array, "G g"],
    *,
    low: int,
    high: int,
    symmetric: bool,
    scale_dtype: str,
    search: bool = True,
) -> Grid:
    """The grid of each group that rounds it with the least weighted squared error.

    Args:
      w: the weights.
      importance: of the squared error of each in feature; the Hessian's diagonal, or ones.
      low, high: range of q; of an asymmetric grid, shifted by its zero.
      symmetric: whether the zero is q = 0.
      scale_dtype: scales are rounded to it first, as they will be stored.
      search: False takes the whole range of each group.
    """
    shrinks = jnp.ones(1)
    if search:
        shrinks = jnp.concatenate([shrinks, jnp.linspace(_LARGEST_SHRINK, _SMALLEST_SHRINK, _SHRINKS)])
    if symmetric and search:
        shrinks = jnp.concatenate([shrinks, -shrinks])

    def grid(shrink: Array) -> Grid:
        if symmetric:
            scale = jnp.max(jnp.abs(w), axis=-1) * shrink * 2 / (high - low)
            zero = jnp.zeros_like(scale)
        else:
            bottom, top = jnp.minimum(w.min(axis=-1), 0) * shrink, jnp.maximum(w.max(axis=-1), 0) * shrink
            scale = (top - bottom) / (high - low)
            zero = jnp.clip(jnp.round(low - bottom / jnp.where(scale > 0, scale, 1)), low, high)
        scale = scale.astype(scale_dtype).astype(jnp.float32)
        return Grid(jnp.where(scale != 0, scale, 1.0), zero)

    def error(candidate: Grid) -> Array:
        return jnp.sum(importance * (round_to_grid(w, candidate, low, high) - w) ** 2, axis=-1)

    def better(i: Array, state: tuple[Grid, Array]) -> tuple[Grid, Array]:
        best, least = state
        candidate = grid(shrinks[i])
        loss = error(candidate)
        wins = loss < least
        return Grid(*(jnp.where(wins, new, old) for new, old in zip(candidate, best, strict=True))), jnp.where(
            wins, loss, least
        )

    first = grid(shrinks[0])
    return lax.fori_loop(1, len(shrinks), better, (first, error(first)))[0]
