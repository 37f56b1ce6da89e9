"""HQQ (Badri and Shaji, https://mobiusml.github.io/hqq_blog/): zeros for weights without data.

Half-quadratic splitting: outliers are taken out of the error by the proximal operator of an l_p norm, p < 1, and the
zero is then the least-squares one for what is left. Ours are rounded to whole numbers at the end, as formats store
them, and kept only where they are no worse than those of `search_grid`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ryzjax.quant.rounding import Grid, nearest, round_to_grid

__all__ = ["improve_zeros"]

_STEPS = 20
_NORM = 0.7
_FIRST_BETA, _BETA_GROWTH = 10.0, 1.01


@partial(jax.jit, static_argnames=("low", "high"))
def improve_zeros(w: Float[Array, "N G g"], grid: Grid, *, low: int, high: int) -> Grid:
    """The grid with zeros that lose less, in the l_p norm of the error, where there are such.

    Args:
      w: the weights.
      grid: asymmetric, to begin with.
    """

    def step(i: Array, zero: Array) -> Array:
        beta = _FIRST_BETA * _BETA_GROWTH**i
        here = Grid(grid.scale, zero)
        q = nearest(w, here, low, high)
        error = w - (q - zero[..., None]) * grid.scale[..., None]
        size = jnp.abs(error)
        shrunk = jnp.maximum(size - jnp.maximum(size, 1e-8) ** (_NORM - 1) / beta, 0)
        outliers = jnp.sign(error) * shrunk
        return jnp.mean(q - (w - outliers) / grid.scale[..., None], axis=-1)

    zero = lax.fori_loop(0, _STEPS, step, grid.zero)
    found = Grid(grid.scale, jnp.clip(jnp.round(zero), low, high))

    def loss(candidate: Grid) -> Array:
        return jnp.sum(jnp.abs(round_to_grid(w, candidate, low, high) - w) ** _NORM, axis=-1)

    return Grid(grid.scale, jnp.where(loss(found) < loss(grid), found.zero, grid.zero))
