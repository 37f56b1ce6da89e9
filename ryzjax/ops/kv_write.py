"""write_kv: puts a step's keys and values into their pages, in place."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import to_bits

__all__ = ["write_kv"]


def write_kv(
    cache: KVCache, layer: int | Int[Array, ""], k: Float[Array, "T H D"], v: Float[Array, "T H D"], batch: TokenBatch
) -> KVCache:
    """The cache with k and v of every token written at (write_page, write_offset) of one layer.

    Padding tokens write to page 0, which belongs to no sequence. Under a donated cache this is in place.
    """
    at = (layer, batch.write_page, slice(None), batch.write_offset)
    return KVCache(k=cache.k.at[at].set(to_bits(k, cache.k.dtype)), v=cache.v.at[at].set(to_bits(v, cache.v.dtype)))
