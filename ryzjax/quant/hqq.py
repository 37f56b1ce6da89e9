"""HQQ's objective (Badri and Shaji, https://mobiusml.github.io/hqq_blog/): weights without data, few large errors
rather than many small ones forgiven.

HQQ minimises the l_p norm of the error, p = 0.7, over the zeros of the groups, by half-quadratic splitting. Formats
that others read store whole numbers for zeros, so there are few to choose from: scales and zeros are searched together
here, for the same norm.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ryzjax.quant.grid import Grid, round_to_grid

__all__ = ["improve_grid"]

_NORM = 0.7
_SHRINKS = 30
_SMALLEST_SHRINK, _LARGEST_SHRINK = 0.7, 1.1
_SHIFTS = (-1.0, 0.0, 1.0)


@partial(jax.jit, static_argnames=("low", "high", "scale_dtype"))
def improve_grid(w: Float[Array, "N G g"], grid: Grid, *, low: int, high: int, scale_dtype: str) -> Grid:
    """The grid, near an asymmetric one, whose rounding has the least l_p norm.

    Args:
      w: the weights.
      grid: to begin with.
      scale_dtype: scales are rounded to it first, as they will be stored.
    """
    shrinks = jnp.linspace(_LARGEST_SHRINK, _SMALLEST_SHRINK, _SHRINKS)

    def norm(candidate: Grid) -> Array:
        return jnp.sum(jnp.abs(round_to_grid(w, candidate, low, high) - w) ** _NORM, axis=-1)

    def better(i: Array, state: tuple[Grid, Array]) -> tuple[Grid, Array]:
        best, least = state
        scale = (grid.scale * shrinks[i // len(_SHIFTS)]).astype(scale_dtype).astype(jnp.float32)
        zero = jnp.clip(grid.zero + jnp.array(_SHIFTS)[i % len(_SHIFTS)], low, high)
        candidate = Grid(jnp.where(scale > 0, scale, grid.scale), zero)
        loss = norm(candidate)
        wins = loss < least
        chosen = Grid(*(jnp.where(wins, new, old) for new, old in zip(candidate, best, strict=True)))
        return chosen, jnp.minimum(loss, least)

    return lax.fori_loop(0, _SHRINKS * len(_SHIFTS), better, (grid, norm(grid)))[0]
