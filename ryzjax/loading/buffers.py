"""Allocates the host buffers that weights are read into, and places host arrays on devices.

The buffers are aligned so that JAX on a CPU takes them over instead of copying them.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import jax
import numpy as np
from jax.sharding import Sharding

__all__ = ["adopted", "aligned_empty", "placed"]

_ALIGNMENT_BYTES = 64
_HUGE_PAGE_BYTES = 2 << 20


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an uninitialised array on a 64-byte boundary. The CPU backend takes such a buffer over without a copy.

    An array of 2 MiB or more starts on a huge page, and the system is asked for huge pages. A decode step reads every
    weight once, and would otherwise need an address translation for every 4 KiB. Filling the array also causes fewer
    page faults (docs/log.md).
    """
    nbytes = math.prod(shape) * dtype.itemsize
    raw = _huge(nbytes) if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE") else _aligned(nbytes)
    return raw.view(dtype).reshape(shape)


def placed(values: np.ndarray, sharding: Sharding) -> jax.Array:
    """Returns host `values` of any shape as an array on the devices of `sharding`.

    Each device's shard is copied into a buffer of `aligned_empty` first.
    """

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        there = values[index or ()]
        out = aligned_empty(there.shape, values.dtype)
        out[...] = there
        return out

    return jax.make_array_from_callback(values.shape, sharding, part).block_until_ready()


def adopted(values: np.ndarray, sharding: Sharding) -> jax.Array:
    """Returns host `values` as an array on the devices of `sharding`. The caller must not write to `values` again.

    A CPU device that holds the whole array takes over its memory, which `aligned_empty` must have allocated. For
    several devices, the shards are copied as by `placed`.
    """
    if len(sharding.device_set) > 1:
        return placed(values, sharding)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values).block_until_ready()


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + nbytes]


def _huge(nbytes: int) -> np.ndarray:
    """Returns uint8 [nbytes] in whole huge pages, with small pages for the remainder, so that no memory is wasted."""
    region = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(region, np.uint8)  # keeps the mapping alive
    start = -raw.ctypes.data % _HUGE_PAGE_BYTES
    with suppress(OSError):  # only advice: a kernel may be built without huge pages
        region.madvise(mmap.MADV_HUGEPAGE, start, nbytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES)
    return raw[start : start + nbytes]
