"""write_kv: writes the keys and values of a step into their pages, in place."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import to_bits
from ryzjax.ops.attention.kv_pages import head_scales, quantize_e4m3, quantize_int8

__all__ = ["write_kv"]


def write_kv(
    cache: KVCache, layer: int | Int[Array, ""], k: Float[Array, "T H D"], v: Float[Array, "T H D"], batch: TokenBatch
) -> KVCache:
    """Returns the cache with k and v of every token written at (write_page, write_offset) of one layer.

    They are quantized to the dtype of the cache. The stored numbers depend only on the token, not on its neighbors.
    Padding tokens write to page 0, which belongs to no sequence. If the cache is donated, the write is in place.
    """
    at = (layer, batch.write_page, slice(None), batch.write_offset)
    if cache.k.dtype == jnp.int8:
        assert cache.k_scale is not None and cache.v_scale is not None
        (k, k_scale), (v, v_scale) = quantize_int8(k), quantize_int8(v)
        cache = cache._replace(k_scale=cache.k_scale.at[at].set(k_scale), v_scale=cache.v_scale.at[at].set(v_scale))
    k_head, v_head = head_scales(cache, layer)
    if k_head is not None and v_head is not None:
        k, v = quantize_e4m3(k, k_head), quantize_e4m3(v, v_head)
    return cache._replace(
        k=cache.k.at[at].set(to_bits(k, cache.k.dtype)), v=cache.v.at[at].set(to_bits(v, cache.v.dtype))
    )
