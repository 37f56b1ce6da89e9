"""HQQ's objective (Badri and Shaji, https://mobiusml.github.io/hqq_blog/): rounds without data and tolerates outliers.

HQQ minimises the l_p norm of the weights' error with p = 0.7, which penalizes a few large errors less than the squared
error does. The original optimizes the zeros of the groups by half-quadratic splitting. Common formats store whole
numbers as zeros, which leaves few to choose from, so scales and zeros are searched together here for the same norm.
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
    """Searches near an asymmetric grid for the grid whose rounding error has the least l_p norm.

    Args:
      w: The weights, float32, G groups of g in features.
      grid: The grid to start from.
      low, high: The range of q.
      scale_dtype: The dtype that scales are stored in. Candidates are rounded to it first.
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
