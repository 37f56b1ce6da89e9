"""segment_attention: causal attention of whole sequences packed into rows, with a gradient; for training and scoring.

By one native call on a CPU forward, and one backward; by `segment_attention_xla` elsewhere. Both keep of the forward
pass what FlashAttention does: the result, and each query's logsumexp.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.native.segment_attention import (
    native_segment_attention_refusal,
    native_segment_backward,
    native_segment_forward,
)
from ryzjax.ops.attention.segment_attention_xla import SegmentRules, segment_backward, segment_forward

__all__ = ["segment_attention", "segment_attention_by_xla", "segment_attention_reference"]


def segment_attention(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    segment_ids: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B S N D"]:
    """Each token attends to its own segment, up to and including itself; computed in float32.

    Not to be left to automatic partitioning: over several devices it belongs inside `shard_map`.

    Args:
      q, k, v: rotated; query head n reads key head n // (N / H).
      segment_ids: runs of equal numbers are a sequence; 0 is padding, whose output is zero.
      positions: of each token in its segment: 0, 1, ... from its start.
      scale, window, softcap, sinks: as of `paged_attention`.
    """
    rules = SegmentRules(scale=scale, window=window, softcap=softcap)
    is_native = native_segment_attention_refusal(q.dtype, k.dtype, v.dtype) is None
    return _attention(rules, is_native, q, k, v, sinks, segment_ids, positions)


def segment_attention_by_xla(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    segment_ids: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B S N D"]:
    """`segment_attention` in pure JAX."""
    rules = SegmentRules(scale=scale, window=window, softcap=softcap)
    return _attention(rules, False, q, k, v, sinks, segment_ids, positions)


def segment_attention_reference(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    segment_ids: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B S N D"]:
    """`segment_attention` by one softmax over all scores; differentiated by JAX."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    scores = jnp.einsum("BQND,BKND->BNQK", q, k) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, :, None] > 0) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    sink = jnp.full(q.shape[2], -jnp.inf) if sinks is None else sinks
    columns = jnp.broadcast_to(sink[None, :, None, None], (*scores.shape[:3], 1))
    # A row of padding sees nothing: a column that everyone sees keeps its softmax finite.
    floor = jnp.where(seen.any(-1)[:, None, :, None], -jnp.inf, jnp.zeros_like(columns))
    weights = jax.nn.softmax(jnp.concatenate([scores, columns, floor], axis=-1), axis=-1)[..., :-2]
    return jnp.einsum("BNQK,BKND->BQND", weights, v)


Saved = tuple[Array, Array, Array, Array | None, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    rules: SegmentRules,
    is_native: bool,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    segment_ids: Array,
    positions: Array,
) -> Array:
    return _forward(rules, is_native, q, k, v, sinks, segment_ids, positions)[0]


def _forward(
    rules: SegmentRules,
    is_native: bool,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    segment_ids: Array,
    positions: Array,
) -> tuple[Array, Saved]:
    def native(
        q: Array, k: Array, v: Array, sinks: Array | None, segment_ids: Array, positions: Array
    ) -> tuple[Array, Array]:
        del positions  # the kernel counts them itself
        limits = {"scale": rules.scale, "window": rules.window, "softcap": rules.softcap}
        return native_segment_forward(q, k, v, segment_ids, sinks, **limits)

    by_xla = partial(segment_forward, rules)
    arguments = q, k, v, sinks, segment_ids, positions
    if is_native:
        out, lse = lax.platform_dependent(*arguments, cpu=native, default=by_xla)
    else:
        out, lse = by_xla(*arguments)
    return out, (q, k, v, sinks, segment_ids, positions, out, lse)


def _backward(
    rules: SegmentRules, is_native: bool, saved: Saved, grad: Array
) -> tuple[Array, Array, Array, Array | None, None, None]:
    q, k, v, sinks, segment_ids, positions, out, lse = saved

    def native(
        q: Array, k: Array, v: Array, segment_ids: Array, positions: Array, out: Array, lse: Array, grad: Array
    ) -> tuple[Array, Array, Array]:
        del positions
        limits = {"scale": rules.scale, "window": rules.window, "softcap": rules.softcap}
        return native_segment_backward(q, k, v, segment_ids, out, lse, grad, **limits)

    by_xla = partial(segment_backward, rules)
    arguments = q, k, v, segment_ids, positions, out, lse, grad
    if is_native:
        q_grad, k_grad, v_grad = lax.platform_dependent(*arguments, cpu=native, default=by_xla)
    else:
        q_grad, k_grad, v_grad = by_xla(*arguments)
    return q_grad, k_grad, v_grad, _sinks_grad(sinks, out, lse, grad), None, None


def _sinks_grad(sinks: Array | None, out: Array, lse: Array, grad: Array) -> Array | None:
    """A sink takes weight from every query and gives nothing: what it costs is the value of what was there."""
    if sinks is None:
        return None
    weights = jnp.exp(sinks.astype(jnp.float32)[None, :, None] - lse)
    row_sum = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    return -jnp.einsum("BNS,BSN->N", weights, row_sum).astype(sinks.dtype)


_attention.defvjp(_forward, _backward)
