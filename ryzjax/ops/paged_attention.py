"""paged_attention: ragged causal attention over a paged KV cache, in pure JAX.

A step mixes rows that decode (one query each) and prefill chunks (many queries of one sequence). Both run an
online softmax (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention) over blocks of pages, so temporaries
do not grow with the context; trip counts are dynamic, so one executable serves every context length.

    decode rows    groups of 8 rows together:    [8, H, G, D] x block of each row's pages
    chunks         tiles of 128 queries, one row: [H, G * 128, D] x block of that row's pages
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ryzjax.batch import KVCache, TokenBatch

__all__ = ["BLOCK_TOKENS", "DECODE_GROUP", "QUERY_TILE", "paged_attention"]

BLOCK_TOKENS = 256
"""Keys a loop iteration looks at: large enough to hide XLA's cost of a loop turn (docs/log.md)."""
DECODE_GROUP = 8
"""Decode rows attended together; a group runs as long as its longest row."""
QUERY_TILE = 128
"""Queries of a prefill chunk attended together."""
_MASKED = -1e30


class _Softmax(NamedTuple):
    """Running state of an online softmax: maximum, sum of exponentials, weighted sum of values."""

    peak: Array
    total: Array
    weighted: Array


def paged_attention(
    q: Float[Array, "T N D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
    *,
    scale: float,
    max_query_len: int,
) -> Float[Array, "T N D"]:
    """Each token attends to its own sequence, up to and including itself.

    Args:
      q: queries, rotated; query head n reads KV head n // (N / H).
      cache: all layers; this step's keys and values already written.
      layer: which layer of the cache.
      batch: rows, their pages and lengths.
      scale: multiplies the scores, usually D^-0.5.
      max_query_len: 1 promises a step of decode rows only; no code for chunks is compiled then.

    Returns:
      Attention output in q's dtype; padding tokens hold finite values of no meaning.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = cache.k.shape[2]
    grouped = q.astype(jnp.float32).reshape(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim) * scale
    out = _decode_rows(grouped, cache, layer, batch)
    if max_query_len > 1:
        out = _chunks(out, grouped, cache, layer, batch)
    return out.reshape(num_tokens, num_heads, head_dim).astype(q.dtype)


def _decode_rows(
    q: Float[Array, "T H G D"], cache: KVCache, layer: int | Int[Array, ""], batch: TokenBatch
) -> Float[Array, "T H G D"]:
    """Attention of the decode rows, whose tokens are the first ones; other tokens come back undefined."""
    rows = min(q.shape[0], batch.context_len.shape[0])
    size = min(DECODE_GROUP, rows)
    padding = -rows % size
    table = jnp.pad(batch.page_table[:rows], ((0, padding), (0, 0)))
    # Chunk rows that share a group with decode rows must not lengthen its loop.
    is_decode = jnp.arange(rows) < batch.num_decode_rows
    lengths = jnp.pad(jnp.where(is_decode, batch.context_len[:rows], 0), (0, padding))
    queries = jnp.pad(q[:rows], ((0, padding), (0, 0), (0, 0), (0, 0)))

    def group(first: Int[Array, ""], out: Array) -> Array:
        here = [lax.dynamic_slice_in_dim(a, first, size) for a in (queries, table, lengths)]
        return lax.dynamic_update_slice_in_dim(out, _attend_rows(here[0], cache, layer, here[1], here[2]), first, 0)

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
) -> Float[Array, "R H G D"]:
    """One query per row over the row's own pages."""
    block_pages = max(1, BLOCK_TOKENS // cache.page_size)
    block = block_pages * cache.page_size
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % block_pages)))

    def body(i: Int[Array, ""], state: _Softmax) -> _Softmax:
        pages = lax.dynamic_slice_in_dim(table, i * block_pages, block_pages, axis=1)
        visible = i * block + jnp.arange(block) < lengths[:, None]
        keys, values = _load_pages(cache.k, layer, pages), _load_values(cache, layer, pages, visible)
        scores = jnp.einsum("RHGD,RHBD->RHGB", q, keys, preferred_element_type=jnp.float32)
        return _accumulate(state, scores, visible[:, None, None, :], values, "RHGB,RHBD->RHGD")

    return _finish(lax.fori_loop(0, (jnp.max(lengths) + block - 1) // block, body, _start(q)))


def _chunks(
    out: Float[Array, "T H G D"],
    q: Float[Array, "T H G D"],
    cache: KVCache,
    layer: int | Int[Array, ""],
    batch: TokenBatch,
) -> Float[Array, "T H G D"]:
    """`out` with the tokens of the prefill chunks filled in, tile by tile in token order.

    A row's last tile may reach into the next row's tokens: those are written again by their own tiles.
    """
    num_tokens = q.shape[0]
    tile = min(QUERY_TILE, num_tokens)
    padding = ((0, tile), (0, 0), (0, 0), (0, 0))
    queries, out = jnp.pad(q, padding), jnp.pad(out, padding)

    def row(r: Int[Array, ""], out: Array) -> Array:
        start, length = batch.query_start[r], batch.query_len[r]
        first_position = batch.context_len[r] - length

        def one_tile(i: Int[Array, ""], out: Array) -> Array:
            first = start + i * tile
            here = lax.dynamic_slice_in_dim(queries, first, tile)
            done = _attend_tile(
                here, cache, layer, batch.page_table[r], first_position + i * tile, batch.context_len[r]
            )
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
) -> Float[Array, "Q H G D"]:
    """Consecutive queries of one row, from `first_position` on, over the row's pages."""
    tile, num_kv_heads, group, head_dim = q.shape
    block_pages = max(1, BLOCK_TOKENS // cache.page_size)
    block = block_pages * cache.page_size
    pages = jnp.pad(pages, (0, -pages.shape[0] % block_pages))
    queries = q.transpose(1, 2, 0, 3).reshape(num_kv_heads, group * tile, head_dim)
    positions = jnp.tile(first_position + jnp.arange(tile), group)
    end = jnp.minimum(first_position + tile, context_len)

    def body(i: Int[Array, ""], state: _Softmax) -> _Softmax:
        here = lax.dynamic_slice_in_dim(pages, i * block_pages, block_pages)
        at = i * block + jnp.arange(block)
        written = at < context_len
        keys = _load_pages(cache.k, layer, here[None])[0]
        values = _load_values(cache, layer, here[None], written[None])[0]
        scores = jnp.einsum("HQD,HBD->HQB", queries, keys, preferred_element_type=jnp.float32)
        visible = (at <= positions[:, None]) & written
        return _accumulate(state, scores, visible, values, "HQB,HBD->HQD")

    done = _finish(lax.fori_loop(0, (end + block - 1) // block, body, _start(queries)))
    return done.reshape(num_kv_heads, group, tile, head_dim).transpose(2, 0, 1, 3)


def _load_pages(pages_array: Array, layer: int | Int[Array, ""], pages: Int[Array, "R P"]) -> Float[Array, "R H B D"]:
    """One block of pages of each row, as float32 [rows, kv_heads, tokens, head_dim]."""
    loaded = pages_array[layer, pages].swapaxes(1, 2)
    rows, heads, num_pages, page_size, head_dim = loaded.shape
    loaded = loaded.reshape(rows, heads, num_pages * page_size, head_dim)
    if loaded.dtype == jnp.uint16:  # bfloat16 bits are the upper half of a float32
        return lax.bitcast_convert_type(loaded.astype(jnp.uint32) << 16, jnp.float32)
    return loaded.astype(jnp.float32)


def _load_values(
    cache: KVCache, layer: int | Int[Array, ""], pages: Int[Array, "R P"], written: Bool[Array, "R B"]
) -> Float[Array, "R H B D"]:
    """Values of one block of pages, zero where the row has written none.

    A page's unused slots hold what an earlier sequence left there; were that NaN, a weight of 0 would not hide it.
    """
    return jnp.where(written[:, None, :, None], _load_pages(cache.v, layer, pages), 0.0)


def _start(q: Float[Array, "... D"]) -> _Softmax:
    lanes = q.shape[:-1]
    return _Softmax(jnp.full(lanes, _MASKED), jnp.zeros(lanes), jnp.zeros(q.shape))


def _accumulate(state: _Softmax, scores: Array, visible: Array, values: Array, weigh: str) -> _Softmax:
    scores = jnp.where(visible, scores, _MASKED)
    peak = jnp.maximum(state.peak, scores.max(axis=-1))
    # A lane that has seen nothing yet has peak _MASKED, where exp(score - peak) would be 1: mask again.
    weights = jnp.where(visible, jnp.exp(scores - peak[..., None]), 0.0)
    shrink = jnp.exp(state.peak - peak)
    return _Softmax(
        peak,
        state.total * shrink + weights.sum(axis=-1),
        state.weighted * shrink[..., None] + jnp.einsum(weigh, weights, values, preferred_element_type=jnp.float32),
    )


def _finish(state: _Softmax) -> Array:
    return state.weighted / jnp.maximum(state.total, 1e-30)[..., None]
