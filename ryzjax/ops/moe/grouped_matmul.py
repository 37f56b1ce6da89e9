"""grouped_matmul: rows sorted by group, each group with a matrix of its own; what a mixture of experts computes.

Two implementations, chosen when the program is lowered for a platform:

    ragged   `jax.lax.ragged_dot`, the reference. XLA on CPU multiplies every row with every matrix and masks.
    tiles    a loop over tiles of rows of one group: only the matrices that are hit are read. CPU.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from ryzjax.bits import from_bits

__all__ = ["grouped_matmul", "grouped_matmul_reference"]

_FEW_ROWS = 256
_SMALL_TILE, _LARGE_TILE = 8, 32


def grouped_matmul(
    x: Float[Array, "M K"], weight: Float[Array, "X N K"] | UInt[Array, "X N K"], group_sizes: Int[Array, " X"]
) -> Float[Array, "M N"]:
    """Row i of group g is `weight[g] @ x[i]`, accumulated and returned in float32.

    Args:
      x: rows, those of group 0 first, then of group 1 and so on; cast to the weight's dtype.
      weight: a matrix [out, in] a group, bfloat16 as its bits (`ryzjax.bits`).
      group_sizes: rows of each group. Rows past their sum come back finite, of no meaning.
    """
    return lax.platform_dependent(x, weight, group_sizes, cpu=_tiles, default=grouped_matmul_reference)


def grouped_matmul_reference(x: Array, weight: Array, group_sizes: Array) -> Array:
    """`grouped_matmul` by `jax.lax.ragged_dot`."""
    weight = from_bits(weight)
    return lax.ragged_dot(
        x.astype(weight.dtype), weight.swapaxes(1, 2), group_sizes, preferred_element_type=jnp.float32
    )


def _tiles(x: Array, weight: Array, group_sizes: Array) -> Array:
    """Tiles in row order; a tile's rows past the end of its group are written again by the next tile."""
    rows = x.shape[0]
    tile = _SMALL_TILE if rows <= _FEW_ROWS else _LARGE_TILE
    ends = jnp.cumsum(group_sizes)
    tiles = (group_sizes + tile - 1) // tile
    tile_ends = jnp.cumsum(tiles)
    x = jnp.pad(x, ((0, tile), (0, 0)))

    def one_tile(i: Int[Array, ""], out: Array) -> Array:
        group = jnp.searchsorted(tile_ends, i, side="right")
        first = ends[group] - group_sizes[group] + (i - (tile_ends[group] - tiles[group])) * tile
        matrix = from_bits(lax.dynamic_index_in_dim(weight, group, keepdims=False))
        here = lax.dynamic_slice_in_dim(x, first, tile).astype(matrix.dtype)
        product = lax.dot_general(here, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return lax.dynamic_update_slice_in_dim(out, product, first, 0)

    out = jnp.zeros((rows + tile, weight.shape[1]), jnp.float32)
    return lax.fori_loop(0, tile_ends[-1], one_tile, out)[:rows]
