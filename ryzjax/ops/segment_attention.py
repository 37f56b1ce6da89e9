"""segment_attention: causal attention of whole sequences packed into rows, with a gradient; for training and scoring.

FlashAttention (Dao, arXiv 2307.08691) in pure JAX: scores exist one block of queries by one of keys at a time, forward
and backward, so that temporaries grow with S and not with its square. Blocks that no query can see (later ones, those
outside the window, those of earlier segments) are skipped, which is why the gradient is written out: JAX has none for
loops of dynamic length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.bits import from_bits, storage_dtype, to_bits

__all__ = ["segment_attention", "segment_attention_reference"]

_QUERY_BLOCK = 128
_KEY_BLOCK = 256
_MASKED = -1e30


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """What is static: see `segment_attention`."""

    scale: float
    window: int | None
    softcap: float | None

    def scores(self, q: Array, k: Array) -> Array:
        """[B, H, G, Q, D] and [B, H, K, D] -> [B, H, G, Q, K], not masked."""
        raw = jnp.einsum("BHGQD,BHKD->BHGQK", q, k) * self.scale
        return raw if self.softcap is None else self.softcap * jnp.tanh(raw / self.softcap)

    def raw_gradient(self, scores: Array, grad: Array) -> Array:
        """The gradient of q k^T, given that of the scores."""
        if self.softcap is not None:
            grad = grad * (1.0 - jnp.square(scores / self.softcap))
        return grad * self.scale


class _Tokens(NamedTuple):
    """Which token is whose: int [B, S] each. Segment 0 is padding."""

    segments: Array
    positions: Array


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

    Args:
      q, k, v: rotated; query head n reads key head n // (N / H).
      segment_ids: runs of equal numbers are a sequence; 0 is padding, whose output is zero.
      positions: of each token in its segment: 0, 1, ... from its start.
      scale, window, softcap, sinks: as of `paged_attention`.
    """
    rules = _Rules(scale=scale, window=window, softcap=softcap)
    batch, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    padding = -length % max(_QUERY_BLOCK, _KEY_BLOCK) if length > _QUERY_BLOCK else 0

    def rows(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))

    grouped = rows(q).reshape(batch, length + padding, kv_heads, heads // kv_heads, dim)
    tokens = _Tokens(segments=rows(segment_ids), positions=rows(positions))
    sink = jnp.full(heads, _MASKED) if sinks is None else sinks.astype(jnp.float32)
    out: Array = _attention(
        rules,
        grouped.transpose(0, 2, 3, 1, 4),
        rows(k).transpose(0, 2, 1, 3),
        rows(v).transpose(0, 2, 1, 3),
        sink.reshape(kv_heads, -1),
        tokens,
    )
    return out.transpose(0, 3, 1, 2, 4)[:, :length].reshape(q.shape)


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


def _blocks(length: int) -> tuple[int, int]:
    """(queries, keys) of a block; one of each where a row is short."""
    return (length, length) if length <= _QUERY_BLOCK else (_QUERY_BLOCK, _KEY_BLOCK)


def _visible_keys(rules: _Rules, tokens: _Tokens, first_query: Array, queries: int, keys: int) -> tuple[Array, Array]:
    """[first, last) block of keys that a block of queries can see."""
    length = tokens.positions.shape[1]
    index = first_query + jnp.arange(queries)
    positions = lax.dynamic_slice_in_dim(tokens.positions, first_query, queries, axis=1)
    segments = lax.dynamic_slice_in_dim(tokens.segments, first_query, queries, axis=1)
    reach = positions if rules.window is None else jnp.minimum(positions, rules.window - 1)
    oldest = jnp.min(jnp.where(segments > 0, index - reach, length))
    last = jnp.where(oldest < length, -(-(first_query + queries) // keys), 0)
    return jnp.minimum(oldest // keys, last), last


def _mask(rules: _Rules, tokens: _Tokens, first_query: Array, queries: int, first_key: Array, keys: int) -> Array:
    """[B, Q, K]: whether a query sees a key."""

    def of(x: Array, first: Array, count: int) -> Array:
        return lax.dynamic_slice_in_dim(x, first, count, axis=1)

    query_segments, key_segments = of(tokens.segments, first_query, queries), of(tokens.segments, first_key, keys)
    distance = (first_query + jnp.arange(queries))[:, None] - (first_key + jnp.arange(keys))[None, :]
    seen = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments[:, :, None] > 0) & (distance >= 0)
    return seen if rules.window is None else seen & (distance < rules.window)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(rules: _Rules, q: Array, k: Array, v: Array, sinks: Array, tokens: _Tokens) -> Array:
    """[B, H, G, S, D], [B, H, S, D] twice and [H, G] -> [B, H, G, S, D]."""
    return _forward(rules, q, k, v, sinks, tokens)[0]


class _Softmax(NamedTuple):
    """Running state of a block of queries: maximum, sum of exponentials, weighted sum of values."""

    peak: Array
    total: Array
    weighted: Array


_Saved = tuple[Array, Array, Array, Array, _Tokens, Array, Array]


def _forward(rules: _Rules, q: Array, k: Array, v: Array, sinks: Array, tokens: _Tokens) -> tuple[Array, _Saved]:
    queries, keys = _blocks(q.shape[3])
    shape, dtype = q.shape, q.dtype
    q, k, v = _bits(q), _bits(k), _bits(v)

    def one_block(_: None, first_query: Array) -> tuple[None, tuple[Array, Array]]:
        block = _floats(q, first_query, queries, axis=3)

        def add_keys(i: Array, state: _Softmax) -> _Softmax:
            first_key = i * keys
            seen = _mask(rules, tokens, first_query, queries, first_key, keys)[:, None, None]
            scores = rules.scores(block, _floats(k, first_key, keys, axis=2))
            peak = jnp.maximum(state.peak, jnp.max(jnp.where(seen, scores, _MASKED), axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - peak[..., None]), 0.0)
            shrink = jnp.exp(state.peak - peak)
            added = jnp.einsum("BHGQK,BHKD->BHGQD", weights, _floats(v, first_key, keys, axis=2))
            return _Softmax(peak, state.total * shrink + weights.sum(-1), state.weighted * shrink[..., None] + added)

        peak = jnp.broadcast_to(sinks[None, :, :, None], block.shape[:-1])
        start = _Softmax(peak, jnp.where(peak > _MASKED, 1.0, 0.0), jnp.zeros_like(block))
        first, last = _visible_keys(rules, tokens, first_query, queries, keys)
        end = lax.fori_loop(first, last, add_keys, start)
        total = jnp.where(end.total > 0, end.total, 1.0)  # padding sees nothing
        return None, (end.weighted / total[..., None], end.peak + jnp.log(total))

    starts = jnp.arange(0, q.shape[3], queries)
    _, (out, log_total) = lax.scan(one_block, None, starts)
    out, log_total = (jnp.moveaxis(x, 0, 3) for x in (out, log_total))
    out = out.reshape(shape)
    return out.astype(dtype), (q, k, v, sinks, tokens, out, log_total.reshape(shape[:-1]))


def _backward(rules: _Rules, saved: _Saved, grad: Array) -> tuple[Array, Array, Array, Array, None]:
    q, k, v, sinks, tokens, out, log_total = saved
    queries, keys = _blocks(q.shape[3])
    # The gradient of a softmax needs the sum of weight * gradient over its row, which is this.
    row_sum = jnp.sum(grad.astype(jnp.float32) * out, axis=-1)
    dtype = grad.dtype
    grad = _bits(grad)

    def one_block(sums: tuple[Array, Array], first_query: Array) -> tuple[tuple[Array, Array], Array]:
        block, block_grad = (_floats(x, first_query, queries, axis=3) for x in (q, grad))
        block_total, block_sum = (
            lax.dynamic_slice_in_dim(x, first_query, queries, axis=3) for x in (log_total, row_sum)
        )

        def add_keys(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            q_grad, k_grad, v_grad = state
            first_key = i * keys
            key_block, value_block = (_floats(x, first_key, keys, axis=2) for x in (k, v))
            seen = _mask(rules, tokens, first_query, queries, first_key, keys)[:, None, None]
            scores = rules.scores(block, key_block)
            weights = jnp.where(seen, jnp.exp(scores - block_total[..., None]), 0.0)
            weights_grad = jnp.einsum("BHGQD,BHKD->BHGQK", block_grad, value_block)
            raw_grad = rules.raw_gradient(scores, weights * (weights_grad - block_sum[..., None]))
            q_grad = q_grad + jnp.einsum("BHGQK,BHKD->BHGQD", raw_grad, key_block)
            k_grad = _add_rows(k_grad, first_key, jnp.einsum("BHGQK,BHGQD->BHKD", raw_grad, block))
            v_grad = _add_rows(v_grad, first_key, jnp.einsum("BHGQK,BHGQD->BHKD", weights, block_grad))
            return q_grad, k_grad, v_grad

        first, last = _visible_keys(rules, tokens, first_query, queries, keys)
        q_grad, k_grad, v_grad = lax.fori_loop(first, last, add_keys, (jnp.zeros_like(block), *sums))
        return (k_grad, v_grad), _bits(q_grad.astype(dtype))

    starts = jnp.arange(0, q.shape[3], queries)
    zeros = jnp.zeros(k.shape, jnp.float32)
    (k_grad, v_grad), q_grad = lax.scan(one_block, (zeros, zeros), starts)
    sink_weights = jnp.exp(sinks[None, :, :, None] - log_total)
    sink_grad = -jnp.sum(sink_weights * row_sum, axis=(0, 3))
    q_grad = from_bits(jnp.moveaxis(q_grad, 0, 3).reshape(q.shape))
    return q_grad, k_grad.astype(dtype), v_grad.astype(dtype), sink_grad, None


def _bits(x: Array) -> Array:
    return to_bits(x, storage_dtype(x.dtype))


def _floats(bits: Array, first: Array, count: int, axis: int) -> Array:
    """float32 values of some rows."""
    return from_bits(lax.dynamic_slice_in_dim(bits, first, count, axis=axis)).astype(jnp.float32)


def _add_rows(total: Array, first: Array, part: Array) -> Array:
    """Adds to rows [first, first + K) of [B, H, S, D]."""
    before = lax.dynamic_slice_in_dim(total, first, part.shape[2], axis=2)
    return lax.dynamic_update_slice_in_dim(total, before + part, first, axis=2)


_attention.defvjp(_forward, _backward)
