"""paged_attention: ragged causal attention over a paged KV cache, in pure JAX.

A step mixes decode rows (one query each) and prefill chunks (many queries of one sequence). Both run an online softmax
(Milakov and Gimelshein, arXiv 1805.02867; FlashAttention) over blocks of pages, so the temporaries do not grow with the
context. Trip counts are dynamic, so one executable serves every context length. A sliding window starts at the first
block that it can see, so its cost does not grow with the context either.

    decode rows    groups of 8 rows together:    [8, H, G, D] x block of each row's pages
    chunks         tiles of 128 queries, one row: [H, G * 128, D] x block of that row's pages
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.ops.attention.kv_pages import KVBlock, head_scales, load_block

__all__ = ["BLOCK_TOKENS", "DECODE_GROUP", "QUERY_TILE", "paged_attention"]

BLOCK_TOKENS = 256
"""The keys of a loop iteration. They are enough to hide the cost of an iteration in XLA (docs/log.md)."""
DECODE_GROUP = 8
"""The number of decode rows attended together. A group runs as long as its longest row."""
QUERY_TILE = 128
"""The number of queries of a prefill chunk attended together."""
_MASKED = -1e30


class _Scores(NamedTuple):
    """The changes of scores before the softmax, as in `paged_attention`. `sinks` is [H, G]."""

    window: int | None
    softcap: float | None
    sinks: Array | None

    def cap(self, scores: Array) -> Array:
        return scores if self.softcap is None else self.softcap * jnp.tanh(scores / self.softcap)

    def first_block(self, first_query: Array, block: int) -> Array:
        """Returns the first block of keys that a query at position `first_query` can see."""
        if self.window is None:
            return jnp.int32(0)
        return jnp.maximum(first_query - (self.window - 1), 0) // block

    def in_window(self, keys: Array, queries: Array) -> Array | bool:
        return True if self.window is None else keys > queries - self.window


class _Softmax(NamedTuple):
    """The state of an online softmax: maximum, sum of exponentials, and weighted sum of values."""

    peak: Array
    total: Array
    weighted: Array


def paged_attention(
    q: Float[Array, "T N D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    sinks: Float[Array, " N"] | None,
    *,
    settings: AttentionSettings,
    max_query_len: int,
) -> Float[Array, "T N D"]:
    """Returns the attention output of each token over its own sequence, up to and including itself.

    Args:
      q: rotated queries. Query head n reads KV head n // (N / H).
      cache: the pages of all layers. They already contain the keys and values of this step.
      layer: the index of the layer in the cache.
      batch: the rows, their pages and their lengths.
      sinks: one score a query head that takes part in the softmax but has no value (GPT-OSS), or None.
      settings: scale, window and soft cap of the scores.
      max_query_len: 1 if all rows decode. The program then has no code for prefill chunks.

    Returns:
      The attention output in the dtype of q. The output of padding tokens is finite and has no meaning.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = cache.k.shape[2]
    grouped = (
        q.astype(jnp.float32).reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim) * settings.scale
    )
    k_scale, v_scale = head_scales(cache, layer)
    if k_scale is not None:
        grouped = grouped * k_scale[:, None, None]
    if sinks is not None:
        sinks = sinks.astype(jnp.float32).reshape(grouped.shape[1:3])
    scores = _Scores(window=settings.window, softcap=settings.softcap, sinks=sinks)
    out = _decode_rows(grouped, cache, layer, batch, scores)
    if max_query_len > 1:
        out = _chunks(out, grouped, cache, layer, batch, scores)
    if v_scale is not None:
        out = out * v_scale[:, None, None]
    return out.reshape(num_tokens, num_heads, head_dim).astype(q.dtype)


def _decode_rows(
    q: Float[Array, "T H G D"], cache: KVCache, layer: int | Int[Array, ""], batch: TokenBatch, to_scores: _Scores
) -> Float[Array, "T H G D"]:
    """Returns the attention output of the decode rows, which come first. The output of other tokens is undefined."""
    rows = min(q.shape[0], batch.context_len.shape[0])
    size = min(DECODE_GROUP, rows)
    padding = -rows % size
    table = jnp.pad(batch.page_table[:rows], ((0, padding), (0, 0)))
    # Chunk rows that share a group with decode rows must not lengthen its loop.
    is_decode = jnp.arange(rows) < batch.num_decode_rows
    lengths = jnp.pad(jnp.where(is_decode, batch.context_len[:rows], 0), (0, padding))
    queries = jnp.pad(q[:rows], ((0, padding), (0, 0), (0, 0), (0, 0)))

    def group(first: int | Int[Array, ""], out: Array) -> Array:
        here = [lax.dynamic_slice_in_dim(a, first, size) for a in (queries, table, lengths)]
        attended = _attend_rows(here[0], cache, layer, here[1], here[2], to_scores)
        return lax.dynamic_update_slice_in_dim(out, attended, first, 0)

    out = jnp.zeros_like(queries)
    if rows == size:
        out = group(jnp.int32(0), out)
    else:
        num_groups = (batch.num_decode_rows + size - 1) // size
        out = lax.fori_loop(0, num_groups, lambda i, out: group(i * size, out), out)
    return jnp.pad(out[:rows], ((0, q.shape[0] - rows), (0, 0), (0, 0), (0, 0)))


def _attend_rows(
    q: Float[Array, "R H G D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    table: Int[Array, "R P"],
    lengths: Int[Array, " R"],
    to_scores: _Scores,
) -> Float[Array, "R H G D"]:
    """Returns the attention output of one query a row, its last token, over the pages of the row."""
    block_pages = max(1, BLOCK_TOKENS // cache.page_size)
    block = block_pages * cache.page_size
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % block_pages)))

    # With a window each row starts at its own first block, so that a long row costs no more than a short one.
    first = to_scores.first_block(lengths - 1, block)
    blocks = (lengths + block - 1) // block - first

    def body(i: int | Int[Array, ""], state: _Softmax) -> _Softmax:
        here = first + i
        pages = _pages_of_block(table, here, block_pages)
        at = here[..., None] * block + jnp.arange(block)
        written = at < lengths[:, None]
        visible = written & to_scores.in_window(at, lengths[:, None] - 1)
        loaded = load_block(cache, layer, pages, written)
        scores = to_scores.cap(_raw_scores(q, loaded, "RHGD,RHBD->RHGB"))
        return _accumulate(state, scores, visible[:, None, None, :], loaded, "RHGB,RHBD->RHGD")

    return _finish(lax.fori_loop(0, jnp.max(blocks), body, _start(q, to_scores.sinks)))


def _pages_of_block(
    table: Int[Array, "R P"], block: Int[Array, ""] | Int[Array, " R"], block_pages: int
) -> Int[Array, "R pages"]:
    """Returns the pages of a block. `block` is one index for all rows, or one a row, which is clipped to the table."""
    if block.ndim == 0:
        return lax.dynamic_slice_in_dim(table, block * block_pages, block_pages, axis=1)
    index = block[:, None] * block_pages + jnp.arange(block_pages)
    return jnp.take_along_axis(table, index, axis=1, mode="clip")


def _chunks(
    out: Float[Array, "T H G D"],
    q: Float[Array, "T H G D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    to_scores: _Scores,
) -> Float[Array, "T H G D"]:
    """Returns `out` with the outputs of the prefill chunks, computed tile by tile in token order.

    The last tile of a row may overlap the tokens of the next row. The tiles of that row overwrite them later.
    """
    num_tokens = q.shape[0]
    tile = min(QUERY_TILE, num_tokens)
    padding = ((0, tile), (0, 0), (0, 0), (0, 0))
    queries, out = jnp.pad(q, padding), jnp.pad(out, padding)

    def row(r: int | Int[Array, ""], out: Array) -> Array:
        start, length = batch.query_start[r], batch.query_len[r]
        first_position = batch.context_len[r] - length

        def one_tile(i: int | Int[Array, ""], out: Array) -> Array:
            first = start + i * tile
            here = lax.dynamic_slice_in_dim(queries, first, tile)
            where = first_position + i * tile, batch.context_len[r]
            done = _attend_tile(here, cache, layer, batch.page_table[r], *where, to_scores)
            return lax.dynamic_update_slice_in_dim(out, done, first, 0)

        return lax.fori_loop(0, (length + tile - 1) // tile, one_tile, out)

    return lax.fori_loop(batch.num_decode_rows, batch.num_rows, row, out)[:num_tokens]


def _attend_tile(
    q: Float[Array, "Q H G D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    pages: Int[Array, " P"],
    first_position: Int[Array, ""],
    context_len: Int[Array, ""],
    to_scores: _Scores,
) -> Float[Array, "Q H G D"]:
    """Returns the attention output of consecutive queries of one row over the pages of the row.

    Args:
      q: the queries.
      cache, layer: the pages of all layers, and the index of the layer.
      pages: the pages of the row.
      first_position: the position of the first query in its sequence.
      context_len: the number of tokens of the row in the cache.
      to_scores: the changes of scores before the softmax.
    """
    tile, num_kv_heads, group, head_dim = q.shape
    block_pages = max(1, BLOCK_TOKENS // cache.page_size)
    block = block_pages * cache.page_size
    pages = jnp.pad(pages, (0, -pages.shape[0] % block_pages))
    queries = q.transpose(1, 2, 0, 3).reshape(num_kv_heads, group * tile, head_dim)
    positions = jnp.tile(first_position + jnp.arange(tile), group)
    end = jnp.minimum(first_position + tile, context_len)

    def body(i: int | Int[Array, ""], state: _Softmax) -> _Softmax:
        here = lax.dynamic_slice_in_dim(pages, i * block_pages, block_pages)
        at = i * block + jnp.arange(block)
        written = at < context_len
        loaded = load_block(cache, layer, here[None], written[None]).row(0)
        scores = to_scores.cap(_raw_scores(queries, loaded, "HQD,HBD->HQB"))
        visible = (at <= positions[:, None]) & written & to_scores.in_window(at, positions[:, None])
        return _accumulate(state, scores, visible, loaded, "HQB,HBD->HQD")

    sinks = None if to_scores.sinks is None else jnp.repeat(to_scores.sinks, tile, axis=1)
    first = to_scores.first_block(first_position, block)
    done = _finish(lax.fori_loop(first, (end + block - 1) // block, body, _start(queries, sinks)))
    return done.reshape(num_kv_heads, group, tile, head_dim).transpose(2, 0, 1, 3)


def _start(q: Float[Array, "... D"], sinks: Float[Array, ...] | None) -> _Softmax:
    """Returns the state before any key. A sink counts as a first score whose value is zero."""
    lanes = q.shape[:-1]
    if sinks is None:
        return _Softmax(jnp.full(lanes, _MASKED), jnp.zeros(lanes), jnp.zeros(q.shape))
    return _Softmax(jnp.broadcast_to(sinks, lanes), jnp.ones(lanes), jnp.zeros(q.shape))


def _raw_scores(queries: Array, block: KVBlock, queries_keys: str) -> Array:
    """Returns the products of queries and keys times the scales of the keys. `queries_keys` is their einsum."""
    scores = jnp.einsum(queries_keys, queries, block.keys, preferred_element_type=jnp.float32)
    return scores if block.key_scale is None else scores * block.key_scale[..., None, :]


def _accumulate(state: _Softmax, scores: Array, visible: Array, block: KVBlock, weights_values: str) -> _Softmax:
    """Returns the state after one more block. `weights_values` is the einsum of softmax weights and values."""
    scores = jnp.where(visible, scores, _MASKED)
    peak = jnp.maximum(state.peak, scores.max(axis=-1))
    # The peak of a query that has seen no key yet is _MASKED. exp(score - peak) would be 1 there, so mask again.
    weights = jnp.where(visible, jnp.exp(scores - peak[..., None]), 0.0)
    shrink = jnp.exp(state.peak - peak)
    total = state.total * shrink + weights.sum(axis=-1)
    if block.value_scale is not None:
        weights = weights * block.value_scale[..., None, :]
    added = jnp.einsum(weights_values, weights, block.values, preferred_element_type=jnp.float32)
    return _Softmax(peak, total, state.weighted * shrink[..., None] + added)


def _finish(state: _Softmax) -> Array:
    return state.weighted / jnp.maximum(state.total, 1e-30)[..., None]
