"""The buffers weights are read into."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import jax
import numpy as np
from jax.sharding import Sharding

__all__ = ["aligned_empty", "placed"]

_ALIGNMENT_BYTES = 64
_HUGE_PAGE_BYTES = 2 << 20


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on a 64-byte boundary: the CPU backend takes such a buffer over instead of copying it.

    Larger ones begin on a huge page and are in huge pages where the system has them: a decode step reads every weight
    once and otherwise needs a translation for every 4 KiB of them, and filling them faults less (docs/log.md).
    """
    nbytes = math.prod(shape) * dtype.itemsize
    raw = _huge(nbytes) if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE") else _aligned(nbytes)
    return raw.view(dtype).reshape(shape)


def placed(values: np.ndarray, sharding: Sharding) -> jax.Array:
    """`values` of any shape and dtype on the devices of `sharding`, each part in a buffer of `aligned_empty`."""

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        there = values[index or ()]
        out = aligned_empty(there.shape, values.dtype)
        out[...] = there
        return out

    return jax.make_array_from_callback(values.shape, sharding, part).block_until_ready()


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + nbytes]


def _huge(nbytes: int) -> np.ndarray:
    """Whole huge pages, and small ones for the rest: no memory is taken that is not used."""
    region = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(region, np.uint8)  # keeps the region
    start = -raw.ctypes.data % _HUGE_PAGE_BYTES
    with suppress(OSError):  # advice only: a kernel may be built without them
        region.madvise(mmap.MADV_HUGEPAGE, start, nbytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES)
    return raw[start : start + nbytes]
