"""The buffers weights are read into."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["aligned_empty"]

_ALIGNMENT_BYTES = 64


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on a 64-byte boundary: the CPU backend takes such a buffer over instead of copying it."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)
