"""attend: writes the keys and values of a step into their pages, then computes attention over the pages.

On a CPU one native call does both. Elsewhere `write_kv` and `paged_attention` do it in JAX.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.native.attention import native_attend, native_attend_refusal
from ryzjax.ops.attention.kv_write import write_kv
from ryzjax.ops.attention.paged_attention import paged_attention
from ryzjax.ops.dispatch import Kernel, Op, Probe
from ryzjax.sharding import Placement

__all__ = ["ATTEND", "attend"]


def attend(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
    max_query_len: int,
    placement: Placement,
) -> tuple[Float[Array, "T N D"], KVCache]:
    """Returns the attention output of each token over its own sequence, and the cache with k and v written.

    With several devices, heads are split and tokens are whole on every device.

    Args:
      q, k, v: queries, keys and values of the step's tokens, rotated.
      cache: the pages of all layers.
      layer: the index of the layer in the cache.
      batch: the rows, their pages and their lengths.
      sinks: one score a query head that takes part in the softmax but has no value (GPT-OSS), or None.
      settings: scale, window and soft cap of the scores.
      max_query_len: 1 if all rows decode. The program then has no code for prefill chunks.
      placement: the devices.
    """
    specs = placement.attention_specs(q.shape[1], k.shape[1], cache)
    sharded = placement.per_shard(
        partial(ATTEND, settings=settings, max_query_len=max_query_len),
        in_specs=(
            specs.heads,
            specs.kv_heads,
            specs.kv_heads,
            specs.cache,
            specs.replicated,
            specs.replicated,
            specs.per_head,
        ),
        out_specs=(specs.heads, specs.cache),
    )
    out, cache = sharded(q, k, v, cache, layer, batch, sinks)
    # The results of a kernel carry no mesh. Without this constraint the next layer would be traced again.
    return out, placement.constrain_cache(cache)


def _attend_by_xla(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
    max_query_len: int,
) -> tuple[Float[Array, "T N D"], KVCache]:
    cache = write_kv(cache, layer, k, v, batch)
    out = paged_attention(q, cache, layer, batch, sinks, settings=settings, max_query_len=max_query_len)
    return out, cache


def _attend_by_native(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
    max_query_len: int,
) -> tuple[Float[Array, "T N D"], KVCache]:
    del max_query_len  # The kernel takes decode rows and chunks alike.
    return native_attend(q, k, v, cache, layer, batch, sinks, settings=settings)


def _native_supports(q: jax.Array, *arrays: object, **settings: object) -> str | None:
    return native_attend_refusal(q.dtype)


def _probes(dtype: DTypeLike) -> list[Probe]:
    q = jax.ShapeDtypeStruct((8, 4, 64), jnp.dtype(dtype))
    return [Probe(label=f"{q.dtype.name} queries, any KV dtype", arrays=(q,))]


ATTEND = Op(
    "attend",
    reference=_attend_by_xla,
    kernels=(
        Kernel(
            name="native",
            platform="cpu",
            supports=_native_supports,
            run=_attend_by_native,
            note="one call writes the KV cache and attends",
        ),
    ),
    probes=_probes,
)
"""The op on one device. Its arguments are those of `attend` without `placement`."""
