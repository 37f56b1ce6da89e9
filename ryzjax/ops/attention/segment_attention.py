"""segment_attention: causal attention of sequences packed into rows, with its gradient, for training and scoring.

On a CPU one native call computes the output and another one the gradients. Elsewhere `segment_attention_xla` does so in
JAX. Both keep what FlashAttention keeps of the forward pass: the output, and the logsumexp of each query.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.native.segment_attention import (
    native_segment_attention_refusal,
    native_segment_backward,
    native_segment_forward,
)
from ryzjax.ops.attention.segment_attention_xla import segment_backward, segment_forward
from ryzjax.ops.dispatch import Kernel, Op, Probe
from ryzjax.sharding import Placement

__all__ = ["segment_attention", "segment_attention_by_xla", "segment_attention_reference"]


def segment_attention(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    positions: Int[Array, "R C"],
    sinks: Float[Array, " N"] | None = None,
    *,
    settings: AttentionSettings,
    placement: Placement | None = None,
) -> Float[Array, "R C N D"]:
    """Returns the attention output of each token over its own segment, up to and including itself.

    Scores and sums are float32. With several devices, rows are split as tokens are, and heads as in serving.

    Args:
      q, k, v: rotated queries, keys and values. Query head n reads KV head n // (N / H).
      segment_ids: runs of equal ids are one sequence. 0 is padding, whose output is zero.
      positions: the position of each token in its segment: 0, 1, ...
      sinks: one score a query head that takes part in the softmax but has no value (GPT-OSS), or None.
      settings: scale, window and soft cap of the scores.
      placement: the devices, or None inside `shard_map` and on one device.
    """
    attend = partial(_attention, settings, False)
    if placement is None:
        return attend(q, k, v, sinks, segment_ids, positions)
    unit = placement.query_heads_unit(q.shape[2], k.shape[2])
    heads = placement.spec(("tokens", None, "heads", None), q.shape, (1, 1, unit, 1))
    kv_heads = placement.spec(("tokens", None, "kv_heads", None), k.shape)
    per_token = placement.spec(("tokens", None), segment_ids.shape)
    per_head = placement.spec(("heads",), (q.shape[2],), (unit,))
    sharded = placement.per_shard(
        attend, in_specs=(heads, kv_heads, kv_heads, per_head, per_token, per_token), out_specs=heads
    )
    return sharded(q, k, v, sinks, segment_ids, positions)


def segment_attention_by_xla(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    positions: Int[Array, "R C"],
    sinks: Float[Array, " N"] | None = None,
    *,
    settings: AttentionSettings,
) -> Float[Array, "R C N D"]:
    """Computes `segment_attention` without kernels of ours, on one device."""
    return _attention(settings, True, q, k, v, sinks, segment_ids, positions)


def segment_attention_reference(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    positions: Int[Array, "R C"],
    sinks: Float[Array, " N"] | None = None,
    *,
    settings: AttentionSettings,
) -> Float[Array, "R C N D"]:
    """Computes `segment_attention` by one softmax over all scores. JAX differentiates it."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    scores = jnp.einsum("RQND,RKND->RNQK", q, k) * settings.scale
    if settings.softcap is not None:
        scores = settings.softcap * jnp.tanh(scores / settings.softcap)
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, :, None] > 0) & (distance >= 0)
    if settings.window is not None:
        seen &= distance < settings.window
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    sink = jnp.full(q.shape[2], -jnp.inf) if sinks is None else sinks
    columns = jnp.broadcast_to(sink[None, :, None, None], (*scores.shape[:3], 1))
    # A row of padding sees no key. A column that every row sees keeps its softmax finite.
    floor = jnp.where(seen.any(-1)[:, None, :, None], -jnp.inf, jnp.zeros_like(columns))
    weights = jax.nn.softmax(jnp.concatenate([scores, columns, floor], axis=-1), axis=-1)[..., :-2]
    return jnp.einsum("RNQK,RKND->RQND", weights, v)


Saved = tuple[Array, Array, Array, Array | None, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    settings: AttentionSettings,
    by_xla: bool,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    segment_ids: Array,
    positions: Array,
) -> Array:
    return _forward(settings, by_xla, q, k, v, sinks, segment_ids, positions)[0]


def _forward(
    settings: AttentionSettings,
    by_xla: bool,
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    segment_ids: Array,
    positions: Array,
) -> tuple[Array, Saved]:
    forward = FORWARD.reference if by_xla else FORWARD
    out, lse = forward(q, k, v, sinks, segment_ids, positions, settings=settings)
    return out, (q, k, v, sinks, segment_ids, positions, out, lse)


def _backward(
    settings: AttentionSettings, by_xla: bool, saved: Saved, grad: Array
) -> tuple[Array, Array, Array, Array | None, None, None]:
    q, k, v, sinks, segment_ids, positions, out, lse = saved
    backward = BACKWARD.reference if by_xla else BACKWARD
    q_grad, k_grad, v_grad = backward(q, k, v, segment_ids, positions, out, lse, grad, settings=settings)
    return q_grad, k_grad, v_grad, _sinks_grad(sinks, out, lse, grad), None, None


def _sinks_grad(sinks: Array | None, out: Array, lse: Array, grad: Array) -> Array | None:
    """Returns the gradient of the sinks. A sink takes weight from every query and adds no value."""
    if sinks is None:
        return None
    weights = jnp.exp(sinks.astype(jnp.float32)[None, :, None] - lse)
    row_sum = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    return -jnp.einsum("RNC,RCN->N", weights, row_sum).astype(sinks.dtype)


_attention.defvjp(_forward, _backward)


def _forward_by_native(
    q: Array,
    k: Array,
    v: Array,
    sinks: Array | None,
    segment_ids: Array,
    positions: Array,
    *,
    settings: AttentionSettings,
) -> tuple[Array, Array]:
    del positions  # The kernel counts positions itself.
    return native_segment_forward(q, k, v, segment_ids, sinks, settings=settings)


def _backward_by_native(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array,
    positions: Array,
    out: Array,
    lse: Array,
    grad: Array,
    *,
    settings: AttentionSettings,
) -> tuple[Array, Array, Array]:
    del positions
    return native_segment_backward(q, k, v, segment_ids, out, lse, grad, settings=settings)


def _native_supports(q: Array, k: Array, v: Array, *arrays: object, **settings: object) -> str | None:
    return native_segment_attention_refusal(q.dtype, k.dtype, v.dtype)


def _probes(dtype: DTypeLike) -> list[Probe]:
    x = jax.ShapeDtypeStruct((1, 8, 4, 64), jnp.dtype(dtype))
    return [Probe(label=x.dtype.name, arrays=(x, x, x))]


FORWARD = Op(
    "segment_attention",
    reference=segment_forward,
    kernels=(
        Kernel(
            name="native",
            platform="cpu",
            supports=_native_supports,
            run=_forward_by_native,
            note="one call, which keeps the output and the logsumexp of each query",
        ),
    ),
    probes=_probes,
)
BACKWARD = Op(
    "segment_attention_gradient",
    reference=segment_backward,
    kernels=(
        Kernel(
            name="native",
            platform="cpu",
            supports=_native_supports,
            run=_backward_by_native,
            note="one call, which computes each weight once",
        ),
    ),
    probes=_probes,
)
