"""Weight buffers: the CPU backend uses them without a copy, and large ones are in huge pages."""

from __future__ import annotations

import gc
import mmap
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from ryzjax.loading.buffers import aligned_empty, placed
from ryzjax.sharding import Layout, Placement

HUGE = 2 << 20
SMAPS = Path("/proc/self/smaps")


def advice_at(address: int) -> str:
    """Returns the kernel's flags for the mapping that holds `address`, empty if there is none."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        first, last = (int(end, 16) for end in mapping.split(" ", 1)[0].split("-"))
        if first <= address < last:
            return mapping.split("VmFlags:")[1]
    return ""


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1024, 1025), (1500, 1024)])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16])
def test_a_buffer_has_its_shape_and_alignment(shape: tuple[int, ...], dtype: type):
    buffer = aligned_empty(shape, np.dtype(dtype))
    assert buffer.shape == shape and buffer.dtype == dtype and buffer.flags.writeable
    assert buffer.size == 0 or buffer.ctypes.data % 64 == 0
    buffer[...] = 1
    assert buffer.astype(np.float32).sum() == np.prod(shape)


@pytest.mark.skipif(not SMAPS.is_file() or not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs Linux")
def test_large_buffers_use_huge_pages_and_release_them():
    buffer = aligned_empty((3 * HUGE + 100,), np.dtype(np.int8))
    address = buffer.ctypes.data
    assert address % HUGE == 0
    if Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        assert " hg" in advice_at(address + 2 * HUGE)
        assert " hg" not in advice_at(address + 3 * HUGE)  # the remainder, less than one huge page
    del buffer
    gc.collect()
    assert " hg" not in advice_at(address + HUGE)


def test_placed_arrays_are_not_copied_again():
    values = np.random.default_rng(0).standard_normal((700, 1024), np.float32)
    array = placed(values, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    np.testing.assert_array_equal(array, values)
    assert array.unsafe_buffer_pointer() % (HUGE if hasattr(mmap, "MADV_HUGEPAGE") else 64) == 0


def test_each_device_has_its_shard():
    placement = Placement(Layout.load("tp"))
    values = np.arange(64 * 16, dtype=np.int8).reshape(64, 16)
    array = placed(values, placement.sharding(("ffn", None), values.shape))
    np.testing.assert_array_equal(array, values)
    assert len({shard.data.shape for shard in array.addressable_shards}) == 1
    assert array.addressable_shards[0].data.shape[0] < 64
