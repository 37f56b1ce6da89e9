"""WeightSpec: what a model wants of one weight, and the buffers weights are read into."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.typing import DTypeLike

__all__ = ["WeightSpec", "aligned_empty"]

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """Shape, dtype and placement of one weight.

    Attributes:
      shape: dimensions, `[out, in]` for matrices.
      dtype: of the array in memory, whatever the file holds.
      sharding: where its parts go.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    sharding: jax.sharding.Sharding

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight, once."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on a 64-byte boundary: the CPU backend takes such a buffer over instead of copying it."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)
