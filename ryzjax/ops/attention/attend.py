"""attend: writes a step's keys and values and attends, by one native call on a CPU, by `write_kv` and
`paged_attention` elsewhere."""

from __future__ import annotations

from functools import partial

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.native.attention import native_attend, native_attend_refusal
from ryzjax.ops.attention.kv_write import write_kv
from ryzjax.ops.attention.paged_attention import paged_attention

__all__ = ["attend", "attend_by_xla"]


def attend(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    *,
    scale: float,
    max_query_len: int,
    window: int | None,
    softcap: float | None,
    sinks: Float[Array, " N"] | None,
) -> tuple[Float[Array, "T N D"], KVCache]:
    """The cache with k and v written, and what each token is given of its own sequence.

    Not to be left to automatic partitioning: over several devices it belongs inside `shard_map`. Arguments and results
    as of `write_kv` and `paged_attention`.
    """
    by_xla = partial(attend_by_xla, scale=scale, max_query_len=max_query_len, window=window, softcap=softcap)
    if native_attend_refusal(q.dtype) is not None:
        return by_xla(q, k, v, cache, layer, batch, sinks)

    def native(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: KVCache,
        layer: jax.Array,
        batch: TokenBatch,
        sinks: jax.Array | None,
    ) -> tuple[jax.Array, KVCache]:
        return native_attend(q, k, v, cache, layer, batch, scale=scale, window=window, softcap=softcap, sinks=sinks)

    return lax.platform_dependent(q, k, v, cache, layer, batch, sinks, cpu=native, default=by_xla)


def attend_by_xla(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    scale: float,
    max_query_len: int,
    window: int | None,
    softcap: float | None,
) -> tuple[Float[Array, "T N D"], KVCache]:
    """`attend` in pure JAX."""
    cache = write_kv(cache, layer, k, v, batch)
    out = paged_attention(
        q,
        cache,
        layer,
        batch,
        scale=scale,
        max_query_len=max_query_len,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    return out, cache
