"""WeightSpec: the shape, dtype and sharding of one weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

__all__ = ["WeightSpec"]


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """Describes one weight of a model.

    Attributes:
      shape: The shape, [out, in] for a matrix.
      dtype: The dtype of the values in memory. A checkpoint file may hold another one.
      stored_dtype: The dtype of the array. It is uint16 if bfloat16 values are stored as their bits (`ryzjax.bits`).
      sharding: The sharding over the devices.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    stored_dtype: DTypeLike
    sharding: jax.sharding.Sharding

    @property
    def nbytes(self) -> int:
        """The size of the whole weight in bytes, counting each replicated shard once."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize
