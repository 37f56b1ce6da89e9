"""Reads and quantizes the numbers in KV cache pages. There are four storage formats, one for each dtype of `KVCache`.

    float32    the numbers themselves
    uint16     the bits of a bfloat16
    int8       x = q * scale, |q| <= 127, with one scale for each token and KV head. The scale is rounded to bfloat16
               before it divides x.
    uint8      x = e4m3 * scale, with one calibrated scale for each layer and KV head

No [tokens, head_dim] block is multiplied by a scale. The scale of a key multiplies its score, the scale of a value
multiplies its softmax weight, and the scale of a whole head multiplies the queries before the loop over blocks and the
outputs after it (docs/log.md has the time that this saves).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from ryzjax.batch import KVCache
from ryzjax.bits import from_bits, to_bits

__all__ = ["E4M3_MAX", "KVBlock", "head_scales", "load_block", "quantize_e4m3", "quantize_int8"]

E4M3_MAX = 448.0
"""The largest number of float8 e4m3 (OCP 8-bit floating point, revision 1.0)."""
_INT8_MAX = 127.0
_SMALLEST_SCALE = 1e-30
"""The scale of rows that are all zero. Any number but 0 would do."""


class KVBlock(NamedTuple):
    """One block of pages of each row.

    Attributes:
      keys, values: float32 numbers, not yet multiplied by their scales. Values in slots that the row has not written
        are finite.
      key_scale, value_scale: one scale for each token and head, or None if the format has none. Value scales are zero
        in slots that the row has not written.
    """

    keys: Float[Array, "R H B D"]
    values: Float[Array, "R H B D"]
    key_scale: Float[Array, "R H B"] | None
    value_scale: Float[Array, "R H B"] | None

    def row(self, index: int) -> KVBlock:
        """Returns one row, without the axis R."""
        scales = (None if scale is None else scale[index] for scale in (self.key_scale, self.value_scale))
        return KVBlock(self.keys[index], self.values[index], *scales)


def load_block(
    cache: KVCache, layer: int | Int[Array, ""], pages: Int[Array, "R P"], written: Bool[Array, "R B"]
) -> KVBlock:
    """Returns the keys and values of one block of pages of each row.

    The unused slots of a page hold numbers of an earlier sequence. If one of them is NaN, a weight of 0 does not hide
    it, so values are set to zero there. Stored int8 and e4m3 numbers are always finite and need no mask.

    Args:
      cache: the pages of all layers.
      layer: the index of the layer in the cache.
      pages: the pages of the block, which hold B tokens.
      written: whether a slot holds a token of the row.
    """
    keys, values = _numbers(_tokens(cache.k, layer, pages)), _numbers(_tokens(cache.v, layer, pages))
    key_scale = value_scale = None
    if cache.k.dtype == jnp.int8:
        assert cache.k_scale is not None and cache.v_scale is not None
        key_scale = _numbers(_tokens(cache.k_scale, layer, pages))
        value_scale = jnp.where(written[:, None, :], _numbers(_tokens(cache.v_scale, layer, pages)), 0.0)
    elif cache.k.dtype != jnp.uint8:
        values = jnp.where(written[:, None, :, None], values, 0.0)
    return KVBlock(keys, values, key_scale, value_scale)


def head_scales(
    cache: KVCache, layer: int | Int[Array, ""]
) -> tuple[Float[Array, " H"] | None, Float[Array, " H"] | None]:
    """Returns the scale of the keys and of the values of each head, or None for both if the format has none."""
    if cache.k.dtype != jnp.uint8:
        return None, None
    assert cache.k_scale is not None and cache.v_scale is not None
    return cache.k_scale[layer], cache.v_scale[layer]


def quantize_int8(x: Float[Array, "T H D"]) -> tuple[Int[Array, "T H D"], UInt[Array, "T H"]]:
    """Quantizes each row of D numbers to int8. Returns the int8 values and the bits of their bfloat16 scales.

    The range of a row is divided into 254 steps. The error is at most half a step. This holds even if the scale was
    rounded down, so that the largest number exceeds 127 steps: it does by at most 2^-9 of itself, a quarter of a step.
    int8 has no NaN. A number that is not finite is stored as 0, so that it affects neither the rest of its row nor a
    later sequence in the page.
    """
    x = x.astype(jnp.float32)
    x = jnp.where(jnp.isfinite(x), x, 0.0)
    scale = to_bits(jnp.maximum(jnp.abs(x).max(axis=-1) / _INT8_MAX, _SMALLEST_SCALE), jnp.uint16)
    steps = jnp.round(x / from_bits(scale).astype(jnp.float32)[..., None])
    return jnp.clip(steps, -_INT8_MAX, _INT8_MAX).astype(jnp.int8), scale


def quantize_e4m3(x: Float[Array, "T H D"], scale: Float[Array, " H"]) -> UInt[Array, "T H D"]:
    """Returns the bits of x / scale as float8 e4m3, clipped to its range. NaN is stored as 0."""
    x = x.astype(jnp.float32) / scale[:, None]
    x = jnp.where(jnp.isnan(x), 0.0, jnp.clip(x, -E4M3_MAX, E4M3_MAX))
    return lax.bitcast_convert_type(x.astype(jnp.float8_e4m3fn), jnp.uint8)


def _tokens(pages_array: Array, layer: int | Int[Array, ""], pages: Int[Array, "R P"]) -> Array:
    """Returns one block of pages of each row as it is stored, [R, H, B, ...]."""
    loaded = pages_array[layer, pages].swapaxes(1, 2)
    rows, heads, num_pages, page_size, *rest = loaded.shape
    return loaded.reshape(rows, heads, num_pages * page_size, *rest)


def _numbers(stored: Array) -> Array:
    """Converts stored numbers to float32, without their scale."""
    if stored.dtype == jnp.uint16:  # The bits of a bfloat16 are the upper half of a float32.
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    return _e4m3(stored) if stored.dtype == jnp.uint8 else stored.astype(jnp.float32)


def _e4m3(bits: Array) -> Array:
    """Converts the bits of float8 e4m3 to float32 with integer operations.

    XLA's own conversion is slower on CPU (docs/log.md). The exponent biases of the two formats differ by 120. Subnormal
    e4m3 numbers (exponent 0) have no implicit leading 1. It is added with the exponent of the smallest normal numbers
    and then subtracted as a float. No step makes a subnormal float32, which XLA on CPU flushes to zero.
    NaN, which `quantize_e4m3` never writes, becomes 480.
    """
    wide = bits.astype(jnp.uint32)
    shifted = (wide & 0x7F) << 20
    hidden = jnp.uint32(121 << 23)
    subnormal = _float(shifted + hidden) - _float(hidden)
    magnitude = jnp.where(shifted < (1 << 23), subnormal, _float(shifted + jnp.uint32(120 << 23)))
    return _float(lax.bitcast_convert_type(magnitude, jnp.uint32) | ((wide & 0x80) << 24))


def _float(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
