"""Pages of a KV cache as numbers, and numbers as they are stored in pages: the four storage formats of `KVCache`.

    float32    as it is
    uint16     bits of a bfloat16
    int8       x = q * scale, |q| <= 127; a scale a token and KV head, rounded to bfloat16 before q is rounded with it
    uint8      x = e4m3 * scale; one calibrated scale a layer and KV head

Scales never touch the [tokens, head_dim] blocks: a key's scales its scores, a value's its weights, and what is one
number a head scales queries before the loop and outputs after it (docs/log.md has what that saves).
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
"""Of rows that are all zero: any would do, but it is divided by."""


class KVBlock(NamedTuple):
    """One block of pages of each row.

    Attributes:
      keys, values: float32, without their scales; values of slots the row has not written are zero or finite.
      key_scale, value_scale: a number a token and head, the latter zero in slots the row has not written; None where
        the format has none.
    """

    keys: Float[Array, "R H B D"]
    values: Float[Array, "R H B D"]
    key_scale: Float[Array, "R H B"] | None
    value_scale: Float[Array, "R H B"] | None

    def row(self, index: int) -> KVBlock:
        """One row, without the axis R."""
        scales = (None if scale is None else scale[index] for scale in (self.key_scale, self.value_scale))
        return KVBlock(self.keys[index], self.values[index], *scales)


def load_block(
    cache: KVCache, layer: int | Int[Array, ""], pages: Int[Array, "R P"], written: Bool[Array, "R B"]
) -> KVBlock:
    """The keys and values of one block of pages of each row.

    A page's unused slots hold what an earlier sequence left there; were that NaN, a weight of 0 would not hide it.
    Stored integers and bytes are always finite, so with them only what multiplies them is masked.
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
    """The scales of keys and of values that a whole head has; None where the format has none."""
    if cache.k.dtype != jnp.uint8:
        return None, None
    assert cache.k_scale is not None and cache.v_scale is not None
    return cache.k_scale[layer], cache.v_scale[layer]


def quantize_int8(x: Float[Array, "T H D"]) -> tuple[Int[Array, "T H D"], UInt[Array, "T H"]]:
    """Rounds each row of D numbers to a 254th of its range: int8 values, and the bits of their bfloat16 scales.

    A row's error is at most half its scale, also where rounding the scale down leaves the largest number above 127
    (by at most 2^-9 of it, a quarter of a step). int8 has no NaN: a number that is not finite is stored as 0, so that
    it spoils neither its row nor a later sequence.
    """
    x = x.astype(jnp.float32)
    x = jnp.where(jnp.isfinite(x), x, 0.0)
    scale = to_bits(jnp.maximum(jnp.abs(x).max(axis=-1) / _INT8_MAX, _SMALLEST_SCALE), jnp.uint16)
    steps = jnp.round(x / from_bits(scale).astype(jnp.float32)[..., None])
    return jnp.clip(steps, -_INT8_MAX, _INT8_MAX).astype(jnp.int8), scale


def quantize_e4m3(x: Float[Array, "T H D"], scale: Float[Array, " H"]) -> UInt[Array, "T H D"]:
    """The bits of x / scale as float8 e4m3, clipped to its range; NaN is stored as 0, as in int8."""
    x = x.astype(jnp.float32) / scale[:, None]
    x = jnp.where(jnp.isnan(x), 0.0, jnp.clip(x, -E4M3_MAX, E4M3_MAX))
    return lax.bitcast_convert_type(x.astype(jnp.float8_e4m3fn), jnp.uint8)


def _tokens(pages_array: Array, layer: int | Int[Array, ""], pages: Int[Array, "R P"]) -> Array:
    """One block of pages of each row as it is stored: [rows, kv_heads, tokens, ...]."""
    loaded = pages_array[layer, pages].swapaxes(1, 2)
    rows, heads, num_pages, page_size, *rest = loaded.shape
    return loaded.reshape(rows, heads, num_pages * page_size, *rest)


def _numbers(stored: Array) -> Array:
    """float32 of what is stored, before its scale."""
    if stored.dtype == jnp.uint16:  # bfloat16 bits are the upper half of a float32
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    return _e4m3(stored) if stored.dtype == jnp.uint8 else stored.astype(jnp.float32)


def _e4m3(bits: Array) -> Array:
    """float32 of float8 e4m3 bits, with integer operations: XLA's own conversion on CPU is slower (docs/log.md).

    Both biases differ by 120. Subnormals (exponent 0) have no hidden one: it is added with the exponent of the
    smallest normals and subtracted again, which never makes a subnormal float32, a number XLA on CPU takes for zero.
    NaN, which `quantize_e4m3` does not write, becomes 480.
    """
    wide = bits.astype(jnp.uint32)
    shifted = (wide & 0x7F) << 20
    hidden = jnp.uint32(121 << 23)
    subnormal = _float(shifted + hidden) - _float(hidden)
    magnitude = jnp.where(shifted < (1 << 23), subnormal, _float(shifted + jnp.uint32(120 << 23)))
    return _float(lax.bitcast_convert_type(magnitude, jnp.uint32) | ((wide & 0x80) << 24))


def _float(bits: Array) -> Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
