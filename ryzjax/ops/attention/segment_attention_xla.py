"""Attention within segments, and its gradient, in pure JAX: FlashAttention (Dao, arXiv 2307.08691).

Scores exist for one block of queries and one block of keys at a time, forward and backward. Temporaries therefore grow
with C, not with its square. Blocks that no query can see are skipped: later ones, those outside the window, and those
of earlier segments. The gradient is written by hand, because JAX cannot differentiate loops of dynamic length.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.bits import from_bits, storage_dtype, to_bits

__all__ = ["segment_backward", "segment_forward"]

_QUERY_BLOCK = 128
_KEY_BLOCK = 256
_MASKED = -1e30


def _scores(settings: AttentionSettings, q: Array, k: Array) -> Array:
    """Returns the scores [R, H, G, Q, K] of queries [R, H, G, Q, D] and keys [R, H, K, D], without a mask."""
    raw = jnp.einsum("RHGQD,RHKD->RHGQK", q, k) * settings.scale
    return raw if settings.softcap is None else settings.softcap * jnp.tanh(raw / settings.softcap)


def _raw_gradient(settings: AttentionSettings, scores: Array, grad: Array) -> Array:
    """Returns the gradient of q k^T, given the gradient of the scores."""
    if settings.softcap is not None:
        grad = grad * (1.0 - jnp.square(scores / settings.softcap))
    return grad * settings.scale


class _Tokens(NamedTuple):
    """The segment and the position of each token, int [R, C] each. Segment 0 is padding."""

    segments: Array
    positions: Array


def segment_forward(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    sinks: Float[Array, " N"] | None,
    segment_ids: Int[Array, "R C"],
    positions: Int[Array, "R C"],
    *,
    settings: AttentionSettings,
) -> tuple[Float[Array, "R C N D"], Float[Array, "R N C"]]:
    """Returns the attention output in the dtype of q, and the logsumexp of each query's scores and sink in float32.

    Both are finite in padding. Arguments as for `segment_attention`.
    """
    length, heads, kv_heads = *q.shape[1:3], k.shape[2]
    sink = jnp.full(heads, _MASKED) if sinks is None else sinks.astype(jnp.float32)
    tokens = _Tokens(segments=_whole_blocks(segment_ids), positions=_whole_blocks(positions))
    arrays = _grouped(q, kv_heads), _by_head(k), _by_head(v)
    out, log_total = _forward(settings, *arrays, sink.reshape(kv_heads, -1), tokens)
    return _ungrouped(out, length).astype(q.dtype), log_total.reshape(q.shape[0], heads, -1)[:, :, :length]


def segment_backward(
    q: Float[Array, "R C N D"],
    k: Float[Array, "R C H D"],
    v: Float[Array, "R C H D"],
    segment_ids: Int[Array, "R C"],
    positions: Int[Array, "R C"],
    out: Float[Array, "R C N D"],
    lse: Float[Array, "R N C"],
    grad: Float[Array, "R C N D"],
    *,
    settings: AttentionSettings,
) -> tuple[Float[Array, "R C N D"], Float[Array, "R C H D"], Float[Array, "R C H D"]]:
    """Returns the gradients of q, k and v.

    Args:
      out, lse: the results of `segment_forward`.
      grad: the gradient of `out`.
    """
    length, kv_heads = q.shape[1], k.shape[2]
    # The sum of weight * gradient over each row, which the gradient of a softmax needs.
    row_sum = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def per_query(x: Array) -> Array:
        """[R, C, N] -> [R, H, G, C]."""
        return _grouped(x[..., None], kv_heads)[..., 0]

    q_grad, k_grad, v_grad = _backward(
        settings,
        _Tokens(segments=_whole_blocks(segment_ids), positions=_whole_blocks(positions)),
        _grouped(q, kv_heads),
        _by_head(k),
        _by_head(v),
        _grouped(grad, kv_heads),
        per_query(lse.transpose(0, 2, 1)),
        per_query(row_sum),
    )
    k_grad, v_grad = (x.transpose(0, 2, 1, 3)[:, :length].astype(k.dtype) for x in (k_grad, v_grad))
    return _ungrouped(q_grad, length), k_grad, v_grad


def _whole_blocks(x: Array) -> Array:
    """Pads [R, C, ...] with zeros at the end, so that C is a whole number of blocks."""
    length = x.shape[1]
    padding = -length % max(_QUERY_BLOCK, _KEY_BLOCK) if length > _QUERY_BLOCK else 0
    return jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))


def _grouped(x: Array, kv_heads: int) -> Array:
    """[R, C, N, D] -> [R, H, G, C, D]."""
    x = _whole_blocks(x)
    return x.reshape(*x.shape[:2], kv_heads, -1, x.shape[3]).transpose(0, 2, 3, 1, 4)


def _ungrouped(x: Array, length: int) -> Array:
    """[R, H, G, C, D] -> [R, length, N, D]."""
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :length]


def _by_head(x: Array) -> Array:
    """[R, C, H, D] -> [R, H, C, D]."""
    return _whole_blocks(x).transpose(0, 2, 1, 3)


def _bits(x: Array) -> Array:
    return to_bits(x, storage_dtype(x.dtype))


def _floats(bits: Array, first: Array, count: int, axis: int) -> Array:
    """float32 values of some rows."""
    return from_bits(lax.dynamic_slice_in_dim(bits, first, count, axis=axis)).astype(jnp.float32)


def _blocks(length: int) -> tuple[int, int]:
    """(queries, keys) of a block; one of each where a row is short."""
    return (length, length) if length <= _QUERY_BLOCK else (_QUERY_BLOCK, _KEY_BLOCK)


def _visible_keys(
    settings: AttentionSettings, tokens: _Tokens, first_query: Array, queries: int, keys: int
) -> tuple[Array, Array]:
    """[first, last) block of keys that a block of queries can see."""
    length = tokens.positions.shape[1]
    index = first_query + jnp.arange(queries)
    positions = lax.dynamic_slice_in_dim(tokens.positions, first_query, queries, axis=1)
    segments = lax.dynamic_slice_in_dim(tokens.segments, first_query, queries, axis=1)
    reach = positions if settings.window is None else jnp.minimum(positions, settings.window - 1)
    oldest = jnp.min(jnp.where(segments > 0, index - reach, length))
    last = jnp.where(oldest < length, -(-(first_query + queries) // keys), 0)
    return jnp.minimum(oldest // keys, last), last


def _mask(
    settings: AttentionSettings, tokens: _Tokens, first_query: Array, queries: int, first_key: Array, keys: int
) -> Array:
    """Returns whether a query sees a key, [R, Q, K]."""

    def of(x: Array, first: Array, count: int) -> Array:
        return lax.dynamic_slice_in_dim(x, first, count, axis=1)

    query_segments, key_segments = of(tokens.segments, first_query, queries), of(tokens.segments, first_key, keys)
    distance = (first_query + jnp.arange(queries))[:, None] - (first_key + jnp.arange(keys))[None, :]
    seen = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments[:, :, None] > 0) & (distance >= 0)
    return seen if settings.window is None else seen & (distance < settings.window)


class _Softmax(NamedTuple):
    """Running state of a block of queries: maximum, sum of exponentials, weighted sum of values."""

    peak: Array
    total: Array
    weighted: Array


def _forward(
    settings: AttentionSettings, q: Array, k: Array, v: Array, sinks: Array, tokens: _Tokens
) -> tuple[Array, Array]:
    """Returns the output [R, H, G, C, D] and the logsumexp [R, H, G, C].

    Args:
      q: [R, H, G, C, D].
      k, v: [R, H, C, D].
      sinks: [H, G].
    """
    queries, keys = _blocks(q.shape[3])
    shape = q.shape
    q, k, v = _bits(q), _bits(k), _bits(v)

    def one_block(_: None, first_query: Array) -> tuple[None, tuple[Array, Array]]:
        block = _floats(q, first_query, queries, axis=3)

        def add_keys(i: Array, state: _Softmax) -> _Softmax:
            first_key = i * keys
            seen = _mask(settings, tokens, first_query, queries, first_key, keys)[:, None, None]
            scores = _scores(settings, block, _floats(k, first_key, keys, axis=2))
            peak = jnp.maximum(state.peak, jnp.max(jnp.where(seen, scores, _MASKED), axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - peak[..., None]), 0.0)
            shrink = jnp.exp(state.peak - peak)
            added = jnp.einsum("RHGQK,RHKD->RHGQD", weights, _floats(v, first_key, keys, axis=2))
            return _Softmax(peak, state.total * shrink + weights.sum(-1), state.weighted * shrink[..., None] + added)

        peak = jnp.broadcast_to(sinks[None, :, :, None], block.shape[:-1])
        start = _Softmax(peak, jnp.where(peak > _MASKED, 1.0, 0.0), jnp.zeros_like(block))
        first, last = _visible_keys(settings, tokens, first_query, queries, keys)
        end = lax.fori_loop(first, last, add_keys, start)
        total = jnp.where(end.total > 0, end.total, 1.0)  # padding sees nothing
        return None, (end.weighted / total[..., None], end.peak + jnp.log(total))

    starts = jnp.arange(0, q.shape[3], queries)
    _, (out, log_total) = lax.scan(one_block, None, starts)
    out, log_total = (jnp.moveaxis(x, 0, 3) for x in (out, log_total))
    return out.reshape(shape), log_total.reshape(shape[:-1])


def _backward(
    settings: AttentionSettings,
    tokens: _Tokens,
    q: Array,
    k: Array,
    v: Array,
    grad: Array,
    log_total: Array,
    row_sum: Array,
) -> tuple[Array, Array, Array]:
    """Returns the gradients of q, in the dtype of q, and of k and v.

    Args:
      q, k, v: as for `_forward`.
      grad: the gradient of the output, [R, H, G, C, D].
      log_total, row_sum: [R, H, G, C] each.
    """
    queries, keys = _blocks(q.shape[3])
    shape, dtype = q.shape, q.dtype
    q, k, v, grad = (_bits(x) for x in (q, k, v, grad))

    def one_block(sums: tuple[Array, Array], first_query: Array) -> tuple[tuple[Array, Array], Array]:
        block, block_grad = (_floats(x, first_query, queries, axis=3) for x in (q, grad))
        block_total, block_sum = (
            lax.dynamic_slice_in_dim(x, first_query, queries, axis=3) for x in (log_total, row_sum)
        )

        def add_keys(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            q_grad, k_grad, v_grad = state
            first_key = i * keys
            key_block, value_block = (_floats(x, first_key, keys, axis=2) for x in (k, v))
            seen = _mask(settings, tokens, first_query, queries, first_key, keys)[:, None, None]
            scores = _scores(settings, block, key_block)
            weights = jnp.where(seen, jnp.exp(scores - block_total[..., None]), 0.0)
            weights_grad = jnp.einsum("RHGQD,RHKD->RHGQK", block_grad, value_block)
            raw_grad = _raw_gradient(settings, scores, weights * (weights_grad - block_sum[..., None]))
            q_grad = q_grad + jnp.einsum("RHGQK,RHKD->RHGQD", raw_grad, key_block)
            k_grad = _add_rows(k_grad, first_key, jnp.einsum("RHGQK,RHGQD->RHKD", raw_grad, block))
            v_grad = _add_rows(v_grad, first_key, jnp.einsum("RHGQK,RHGQD->RHKD", weights, block_grad))
            return q_grad, k_grad, v_grad

        first, last = _visible_keys(settings, tokens, first_query, queries, keys)
        q_grad, k_grad, v_grad = lax.fori_loop(first, last, add_keys, (jnp.zeros_like(block), *sums))
        return (k_grad, v_grad), _bits(q_grad.astype(dtype))

    starts = jnp.arange(0, q.shape[3], queries)
    zeros = jnp.zeros(k.shape, jnp.float32)
    (k_grad, v_grad), q_grad = lax.scan(one_block, (zeros, zeros), starts)
    return from_bits(jnp.moveaxis(q_grad, 0, 3).reshape(shape)), k_grad, v_grad


def _add_rows(total: Array, first: Array, part: Array) -> Array:
    """Adds to rows [first, first + K) of [R, H, C, D]."""
    before = lax.dynamic_slice_in_dim(total, first, part.shape[2], axis=2)
    return lax.dynamic_update_slice_in_dim(total, before + part, first, axis=2)
