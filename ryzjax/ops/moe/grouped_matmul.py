"""grouped_matmul: multiplies rows sorted by group with the matrix of their group, as a mixture of experts needs.

There are two implementations:

    ragged_dot  `jax.lax.ragged_dot` is the reference. XLA on a CPU multiplies every row with every matrix and masks.
    tiles       On a CPU, a loop over tiles of rows of one group reads only the matrices of groups that have rows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from ryzjax.bits import from_bits
from ryzjax.ops.dispatch import Kernel, Op

__all__ = ["grouped_matmul"]

_FEW_ROWS = 256
_SMALL_TILE, _LARGE_TILE = 8, 32


def _by_ragged_dot(
    x: Float[Array, "M K"], weight: Float[Array, "X N K"] | UInt[Array, "X N K"], group_sizes: Int[Array, " X"]
) -> Float[Array, "M N"]:
    weight = from_bits(weight)
    return lax.ragged_dot(
        x.astype(weight.dtype), weight.swapaxes(1, 2), group_sizes, preferred_element_type=jnp.float32
    )


def _tiles(x: Array, weight: Array, group_sizes: Array) -> Array:
    """Multiplies tiles in row order. The next tile overwrites the rows of a tile past the end of its group."""
    rows = x.shape[0]
    tile = _SMALL_TILE if rows <= _FEW_ROWS else _LARGE_TILE
    ends = jnp.cumsum(group_sizes)
    tiles = (group_sizes + tile - 1) // tile
    tile_ends = jnp.cumsum(tiles)
    x = jnp.pad(x, ((0, tile), (0, 0)))

    def one_tile(i: int | Int[Array, ""], out: Array) -> Array:
        group = jnp.searchsorted(tile_ends, i, side="right")
        first = ends[group] - group_sizes[group] + (i - (tile_ends[group] - tiles[group])) * tile
        matrix = from_bits(lax.dynamic_index_in_dim(weight, group, keepdims=False))
        here = lax.dynamic_slice_in_dim(x, first, tile).astype(matrix.dtype)
        product = lax.dot_general(here, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return lax.dynamic_update_slice_in_dim(out, product, first, 0)

    out = jnp.zeros((rows + tile, weight.shape[1]), jnp.float32)
    return lax.fori_loop(0, tile_ends[-1], one_tile, out)[:rows]


grouped_matmul = Op(
    "grouped_matmul",
    reference=_by_ragged_dot,
    kernels=(
        Kernel(
            name="tiles",
            platform="cpu",
            supports=lambda *arrays: None,
            run=_tiles,
            note="a loop of XLA's products, which reads only the experts that have rows; ragged_dot reads all of them",
        ),
    ),
    reference_note="jax.lax.ragged_dot",
)
"""Returns `weight[g] @ x[i]` for each row i of group g, accumulated in float32: [M, N].

Args:
  x: rows [M, K], sorted by group. They are cast to the weight's dtype.
  weight: one matrix [out, in] a group, [X, N, K]. bfloat16 is stored as its bits (`ryzjax.bits`).
  group_sizes: the number of rows of each group, [X]. Rows past their sum are finite and have no meaning.
"""
