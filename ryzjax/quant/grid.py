"""Rounds to nearest on the grid of each group, and searches for the scales with the least error.

Clipping a group's largest weights makes the steps of its grid smaller. The search shrinks a scale as long as that
lowers the error. All functions take a weight as groups, float32 [N, G, g]: G groups of g in features.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["SHRINKS", "Grid", "nearest_levels", "round_to_grid", "search_grid"]

SHRINKS = np.append(np.float32(1), np.linspace(1.1, 0.5, 40, dtype=np.float32))
"""The factors, in the order of the search, of the range that just covers a group. A factor above 1 can still lower the
error, since a grid has one level more on one side of zero than on the other."""


class Grid(NamedTuple):
    """The values that the weights of each group can take: scale * (q - zero), with q from `low` to `high`.

    Attributes:
      scale: float32 [N, G], never zero. A negative scale gives the extra level to positive weights.
      zero: Whole numbers, float32 [N, G]; 0 in a symmetric grid.
    """

    scale: Float[Array, "N G"]
    zero: Float[Array, "N G"]


def nearest_levels(w: Float[Array, "N G g"], grid: Grid, low: int, high: int) -> Float[Array, "N G g"]:
    """Returns the q of each weight, as float32 whole numbers from `low` to `high`."""
    return jnp.clip(jnp.round(w / grid.scale[..., None]) + grid.zero[..., None], low, high)


def round_to_grid(w: Float[Array, "N G g"], grid: Grid, low: int, high: int) -> Float[Array, "N G g"]:
    """Returns each weight rounded to the nearest value of its grid."""
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
    """Searches for the grid of each group with the least weighted squared error.

    Args:
      w: The weights.
      importance: Weight of each in feature's squared error: the Hessian's diagonal, or ones.
      low, high: The range of q, which includes the zero of an asymmetric grid.
      symmetric: Whether the zero is q = 0.
      scale_dtype: The dtype that scales are stored in. Candidates are rounded to it first.
      search: Whether to search. False takes the whole range of each group.
    """
    shrinks = jnp.asarray(SHRINKS if search else SHRINKS[:1])
    if symmetric and search:
        shrinks = jnp.concatenate([shrinks, -shrinks])

    def grid(shrink: Array) -> Grid:
        if symmetric:
            scale = jnp.max(jnp.abs(w), axis=-1) * shrink * np.float32(2 / (high - low))
            zero = jnp.zeros_like(scale)
        else:
            bottom, top = jnp.minimum(w.min(axis=-1), 0) * shrink, jnp.maximum(w.max(axis=-1), 0) * shrink
            scale = (top - bottom) / (high - low)
            zero = jnp.clip(jnp.round(low - bottom / jnp.where(scale > 0, scale, 1)), low, high)
        # XLA may remove a cast to fewer bits and back, but not this rounding. Candidates are then compared, and q is
        # chosen, with the scales that are stored.
        scale = lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=jnp.finfo(scale_dtype).nmant)
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
