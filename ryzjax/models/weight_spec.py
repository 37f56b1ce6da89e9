"""WeightSpec: what a model wants of one weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

__all__ = ["WeightSpec"]


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """Shape, dtype and placement of one weight.

    Attributes:
      shape: dimensions, `[out, in]` for matrices.
      dtype: of the values in memory, whatever the file holds.
      stored_dtype: of the array; uint16 where bfloat16 values are stored as their bits (`ryzjax.bits`).
      sharding: where its parts go.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    stored_dtype: DTypeLike
    sharding: jax.sharding.Sharding

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight, once."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize
