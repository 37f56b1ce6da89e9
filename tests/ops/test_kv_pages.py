"""Storage formats of KV pages: every float8 value, the rounding of int8, and NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ryzjax.batch import KVCache
from ryzjax.ops.attention.kv_pages import E4M3_MAX, head_scales, load_block, quantize_e4m3, quantize_int8
from ryzjax.ops.attention.kv_write import write_kv
from tests.ops.test_paged_attention import make_batch

RNG = np.random.default_rng(5)


def rows_of_all_sizes() -> np.ndarray:
    """Returns rows of sizes from 1e-20 to 1e20, many of them with one large number, [512, 2, 16]."""
    x = RNG.standard_normal((512, 2, 16)) * 10.0 ** RNG.integers(-20, 20, (512, 2, 1))
    x[::3, :, 0] *= 50
    return x.astype(np.float32)


def int8_values(q: jax.Array, scale_bits: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dequantized values and the scales, both in float64."""
    scale = np.asarray(scale_bits).view(ml_dtypes.bfloat16).astype(np.float64)
    return np.asarray(q).astype(np.float64) * scale[..., None], scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_int8_is_within_half_a_step_of_its_stored_scale(dtype: jnp.dtype):
    x = jnp.asarray(rows_of_all_sizes(), dtype)
    values, scale = int8_values(*jax.jit(quantize_int8)(x))
    exact = np.asarray(x, np.float64)
    # The division itself is rounded, so a tie may go to the other side: 1e-5.
    assert (np.abs(values - exact) <= scale[..., None] * (0.5 + 1e-5)).all()
    # A step is 1/127 of the largest number, up to the rounding of the scale to 8 bits.
    np.testing.assert_allclose(scale, np.abs(exact).max(-1) / 127, rtol=2**-8)


def test_int8_of_zeros_and_of_numbers_that_are_none():
    x = np.ones((4, 1, 8), np.float32)
    x[0] = 0
    x[1, 0, 3], x[2, 0, 3], x[3] = np.nan, -np.inf, np.nan
    q, scale_bits = quantize_int8(jnp.asarray(x))
    values, scale = int8_values(q, scale_bits)
    assert (scale > 0).all() and np.isfinite(scale).all()
    np.testing.assert_array_equal(values[0], 0)
    np.testing.assert_array_equal(values[3], 0)
    for row in (1, 2):  # the other values of the row do not change
        assert values[row, 0, 3] == 0
        np.testing.assert_allclose(np.delete(values[row, 0], 3), 1, atol=scale[row, 0] / 2)


def test_e4m3_is_the_nearest_float8_clipped():
    scale = np.array([0.03, 2.0], np.float32)
    x = (RNG.standard_normal((4096, 2, 4)) * np.exp(3 * RNG.standard_normal((4096, 2, 1)))).astype(np.float32)
    x[0, 0] = [1e9, -1e9, np.inf, np.nan]
    bits = np.asarray(jax.jit(quantize_e4m3)(jnp.asarray(x), jnp.asarray(scale)))
    scaled = np.clip(x / scale[:, None], -E4M3_MAX, E4M3_MAX)
    np.testing.assert_array_equal(bits[1:], scaled[1:].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    first = bits[0, 0].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(first, [448, -448, 448, 0])


def test_every_float8_is_read_exactly():
    # This includes subnormals, in a vector long enough for the vectorized code. The two NaN codes become finite.
    codes = np.arange(256, dtype=np.uint8)
    pages = jnp.asarray(np.tile(codes, 64).reshape(1, 1, 1, 64, 256))
    cache = KVCache(pages, pages, jnp.ones((1, 1)), jnp.ones((1, 1)))
    block = jax.jit(load_block)(cache, 0, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 64), bool))
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    expected[0x7F], expected[0xFF] = 480, -480
    for read in (block.keys, block.values):
        np.testing.assert_array_equal(np.asarray(read)[0, 0], np.tile(expected, (64, 1)))
    assert block.key_scale is None and block.value_scale is None


def test_scales_of_slots_that_are_not_written_are_zero():
    nan = jnp.full((1, 2, 1, 4), 0x7FC0, jnp.uint16)
    pages = jnp.full((1, 2, 1, 4, 8), 100, jnp.int8)
    cache = KVCache(pages, pages, nan, nan)
    block = load_block(cache, 0, jnp.ones((1, 1), jnp.int32), jnp.array([[False] * 4]))
    assert block.value_scale is not None and block.key_scale is not None
    np.testing.assert_array_equal(block.value_scale, 0)
    assert np.isnan(block.key_scale).all()  # keys are masked through their scores


def test_a_write_changes_its_own_slots_only():
    batch = make_batch([(3, 1), (0, 5)], tokens=7, max_rows=3, page_size=4, pages=2)
    k, v = (jnp.asarray(RNG.standard_normal((7, 2, 8)), jnp.float32) for _ in range(2))
    pages, scales = jnp.full((3, 7, 2, 4, 8), 77, jnp.int8), jnp.full((3, 7, 2, 4), 0x4000, jnp.uint16)
    written = write_kv(KVCache(pages, pages, scales, scales), 1, k, v, batch)
    expected_k, expected_scale = (np.asarray(part) for part in quantize_int8(k))
    mine = np.zeros((7, 4), bool)
    mine[np.asarray(batch.write_page), np.asarray(batch.write_offset)] = True
    assert written.k_scale is not None
    for token in range(6):  # padding is written to page 0, where the last write wins
        at = 1, batch.write_page[token], slice(None), batch.write_offset[token]
        np.testing.assert_array_equal(written.k[at], expected_k[token])
        np.testing.assert_array_equal(written.k_scale[at], expected_scale[token])
    others = np.broadcast_to(~mine[None, :, None, :], (3, 7, 2, 4)).copy()
    others[[0, 2]] = True
    np.testing.assert_array_equal(np.asarray(written.k)[others], 77)
    np.testing.assert_array_equal(np.asarray(written.v_scale)[others], 0x4000)


def test_only_fp8_has_scales_of_whole_heads():
    scales = jnp.arange(6, dtype=jnp.float32).reshape(3, 2)
    pages = jnp.zeros((3, 2, 2, 4, 8), jnp.uint8)
    k_scale, v_scale = head_scales(KVCache(pages, pages, scales, scales + 10), 1)
    np.testing.assert_array_equal(k_scale, [2, 3])
    np.testing.assert_array_equal(v_scale, [12, 13])
    assert head_scales(KVCache(pages.astype(jnp.float32), pages.astype(jnp.float32)), 1) == (None, None)
