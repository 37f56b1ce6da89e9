"""Weight: a parameter that declares its shape, dtype and logical axes in one place."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.bits import storage_dtype

__all__ = ["Weight"]


class Weight(nnx.Param):
    """An nnx.Param with logical axes.

    Args:
      shape: the shape as stored. The weight of a linear layer is [out, in].
      dtype: the dtype of the numbers.
      axes: the logical axis of each dimension; None for a dimension that is never split.
      units: the indivisible run of each dimension, such as head_dim for the fused heads of a projection. The default
        is 1 for each.
      as_bits: whether bfloat16 is stored as its bits (`ryzjax.bits`). Weights that a loop slices need this.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: DTypeLike,
        axes: tuple[str | None, ...],
        units: tuple[int, ...] | None = None,
        *,
        as_bits: bool = False,
    ):
        stored = storage_dtype(dtype) if as_bits else dtype
        super().__init__(
            jnp.zeros(tuple(shape), stored), axes=axes, units=units or (1,) * len(axes), values=jnp.dtype(dtype).name
        )
