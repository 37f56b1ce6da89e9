"""Weight: a parameter's shape, dtype and logical axes, in one declaration."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.bits import storage_dtype

__all__ = ["Weight"]


class Weight(nnx.Param):
    """An nnx.Param that knows its logical axes.

    Args:
      shape: as stored; a linear's weight is [out, in].
      axes: a logical axis (or None) per dimension.
      units: indivisible run per dimension, head_dim for the fused heads of a projection.
      as_bits: store bfloat16 as its bits (`ryzjax.bits`), for weights that a loop takes slices of.
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
