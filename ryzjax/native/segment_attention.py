"""Attention within segments and its gradient by the native kernels. src/segment_attention.h states their contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.native.library import native_refusal

__all__ = ["native_segment_attention_refusal", "native_segment_backward", "native_segment_forward"]

_NUMBERS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
_TASKS = 16
"""The number of tasks that the gradient of a single segment is cut into, if there are as many heads."""


def native_segment_attention_refusal(q_dtype: jnp.dtype, k_dtype: jnp.dtype, v_dtype: jnp.dtype) -> str | None:
    """Returns why the kernels cannot take queries, keys and values of these dtypes, or None if they can."""
    if q_dtype not in _NUMBERS:
        return f"queries are {q_dtype}, not float32 or bfloat16"
    if k_dtype != q_dtype or v_dtype != q_dtype:
        return f"q is {q_dtype}, k {k_dtype}, v {v_dtype}; expected one dtype"
    return native_refusal()


def native_segment_forward(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
) -> tuple[Float[Array, "R C N D"], Float[Array, "R N C"]]:
    """Returns the attention output in the dtype of q, and the logsumexp of each query's scores and sink in float32.

    Both are zero in padding. Arguments as for `segment_attention`.

    Raises:
      ValueError: the kernels do not take a dtype or shape.
    """
    if reason := _refusal(q, k, v, segment_ids):
        raise ValueError(f"native_segment_forward: {reason}")
    rows, length, heads, _ = q.shape
    call = jax.ffi.ffi_call(
        "ryzjax_segment_forward",
        (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)),
        vmap_method="sequential",
    )
    arrays = [] if sinks is None else [sinks.astype(jnp.float32)]
    out, lse = call(
        q,
        k,
        v,
        segment_ids.astype(jnp.int32),
        *arrays,
        scale=np.float32(settings.scale),
        window=_window(settings.window, length),
        softcap=np.float32(settings.softcap or 0.0),
    )
    return out, lse


def native_segment_backward(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    out: Float[Array, "R C N D"],
    lse: Float[Array, "R N C"],
    grad: Float[Array, "R C N D"],
    *,
    settings: AttentionSettings,
) -> tuple[Float[Array, "R C N D"], Float[Array, "R C H D"], Float[Array, "R C H D"]]:
    """Returns the gradients of q, k and v, summed in float32 and rounded once.

    Args:
      q, k, v, segment_ids: the arguments of `native_segment_forward`.
      out, lse: its results.
      grad: the gradient of `out`.
      settings: scale, window and soft cap of the scores.

    Raises:
      ValueError: the kernels do not take a dtype or shape.
    """
    if reason := _refusal(q, k, v, segment_ids):
        raise ValueError(f"native_segment_backward: {reason}")
    rows, length, heads, _ = q.shape
    parts = _parts(rows, heads, k.shape[2])
    sums = jax.ShapeDtypeStruct((parts, *k.shape) if parts > 1 else (0,), jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    call = jax.ffi.ffi_call("ryzjax_segment_backward", (*results, sums, sums), vmap_method="sequential")
    q_grad, k_grad, v_grad, _, _ = call(
        q,
        k,
        v,
        segment_ids.astype(jnp.int32),
        out,
        lse,
        grad.astype(q.dtype),
        scale=np.float32(settings.scale),
        window=_window(settings.window, length),
        softcap=np.float32(settings.softcap or 0.0),
        parts=np.int64(parts),
    )
    return q_grad, k_grad, v_grad


def _window(window: int | None, length: int) -> np.int64:
    return np.int64(0 if window is None else min(window, length))


def _parts(rows: int, heads: int, kv_heads: int) -> int:
    """Returns the number of parts of a KV head's query heads: enough for all threads, few enough for memory."""
    group = heads // kv_heads
    divisors = [parts for parts in range(1, group + 1) if group % parts == 0]
    return next((parts for parts in divisors if rows * kv_heads * parts >= _TASKS), group)


def _refusal(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> str | None:
    if reason := native_segment_attention_refusal(q.dtype, k.dtype, v.dtype):
        return reason
    fits = (
        q.ndim == 4 and k.shape == v.shape and k.ndim == 4 and (*k.shape[:2], k.shape[3]) == (*q.shape[:2], q.shape[3])
    )
    if not fits or q.shape[2] % k.shape[2]:
        return (
            f"q is {q.shape}, k {k.shape}, v {v.shape}; expected [R, C, N, D], and [R, C, H, D] with N a multiple of H"
        )
    if segment_ids.shape != q.shape[:2]:
        return f"segment ids are {segment_ids.shape}; expected {q.shape[:2]}"
    return None
