"""write_kv: puts a step's keys and values into their pages, in place."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.batch import KVCache, TokenBatch

__all__ = ["to_storage", "write_kv"]


def to_storage(x: Array, dtype: jnp.dtype) -> Array:
    """`x` as the cache stores it: bfloat16 as its uint16 bits, everything else cast."""
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def write_kv(
    cache: KVCache, layer: int | Int[Array, ""], k: Float[Array, "T H D"], v: Float[Array, "T H D"], batch: TokenBatch
) -> KVCache:
    """The cache with k and v of every token written at (write_page, write_offset) of one layer.

    Padding tokens write to page 0, which belongs to no sequence. Under a donated cache this is in place.
    """
    at = (layer, batch.write_page, slice(None), batch.write_offset)
    return KVCache(
        k=cache.k.at[at].set(to_storage(k, cache.k.dtype)), v=cache.v.at[at].set(to_storage(v, cache.v.dtype))
    )
