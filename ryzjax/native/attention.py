"""Writes the KV cache and computes paged attention in one native call. src/attention.h states its contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.native.library import native_refusal

__all__ = ["native_attend", "native_attend_refusal"]

_NUMBERS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def native_attend_refusal(q_dtype: jnp.dtype) -> str | None:
    """Returns why the kernel cannot take queries of a dtype, or None if it can."""
    if q_dtype not in _NUMBERS:
        return f"queries are {q_dtype}, not float32 or bfloat16"
    return native_refusal()


def native_attend(
    q: Float[Array, "T N D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
) -> tuple[Float[Array, "T N D"], KVCache]:
    """Writes k and v into their pages, in place if the cache is donated, and computes attention.

    Arguments and results are those of `write_kv` and `paged_attention`. Padding tokens give zeros and write nothing.

    Raises:
      ValueError: the kernel does not take a dtype or shape.
    """
    if reason := _refusal(q, k, v, cache):
        raise ValueError(f"native_attend: {reason}")
    scales = [array for array in (cache.k_scale, cache.v_scale) if array is not None]
    rest = scales if sinks is None else [*scales, sinks.astype(jnp.float32)]
    scalars = [jnp.asarray(x, jnp.int32) for x in (layer, batch.num_decode_rows, batch.num_rows)]
    arguments = [q, k, v, cache.k, cache.v, scalars[0]]
    arguments += [batch.write_page, batch.write_offset, batch.page_table]
    arguments += [batch.query_start, batch.query_len, batch.context_len, *scalars[1:], *rest]
    # The kernel writes int8 scales too. It only reads float8 scales.
    written = [cache.k, cache.v, *(scales if cache.k.dtype == jnp.int8 else [])]
    first_scale = len(arguments) - len(rest)
    positions = [3, 4, *range(first_scale, first_scale + len(written) - 2)]
    call = jax.ffi.ffi_call(
        "ryzjax_attend",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *written)],
        input_output_aliases={at: 1 + i for i, at in enumerate(positions)},
    )
    out, k_pages, v_pages, *new_scales = call(
        *arguments,
        scale=np.float32(settings.scale),
        window=np.int64(settings.window or 0),
        softcap=np.float32(settings.softcap or 0.0),
        has_sinks=sinks is not None,
    )
    cache = cache._replace(k=k_pages, v=v_pages)
    return out, cache._replace(k_scale=new_scales[0], v_scale=new_scales[1]) if new_scales else cache


def _refusal(q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCache) -> str | None:
    if reason := native_attend_refusal(q.dtype):
        return reason
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q is {q.dtype}, k {k.dtype}, v {v.dtype}; expected one dtype"
    if q.ndim != 3 or k.shape != v.shape or k.shape[::2] != q.shape[::2] or q.shape[1] % k.shape[1]:
        return f"q is {q.shape}, k {k.shape}, v {v.shape}; expected [T, N, D], and [T, H, D] with N a multiple of H"
    if cache.k.shape[2] != k.shape[1] or cache.k.shape[4] != k.shape[2]:
        return f"the cache is {cache.k.shape}; expected [layers, pages, {k.shape[1]}, page size, {k.shape[2]}]"
    return None
