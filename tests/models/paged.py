"""Runs a model over the paged cache by hand, without the engine: logits of every token of a sequence."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, empty_kv_cache

PAGE = 8


def empty_cache(model: AbstractModel, pages: int, kv_format: KVFormat | None = None) -> KVCache:
    """Pages 1 to `pages` and page 0, on the model's mesh; in the model's dtype by default."""
    kv_format = kv_format or KVFormat(dtype=model.config.dtype)
    return empty_kv_cache(model.config, model.placement, kv_format, num_pages=pages + 1, page_size_tokens=PAGE)


def one_row(tokens: list[int], start: int, *, pages: int, rope_length: int) -> TokenBatch:
    """A step that feeds `tokens` at positions from `start` on, of one sequence on pages 1, 2, ..."""
    positions = start + np.arange(len(tokens), dtype=np.int32)
    one = np.ones(1, np.int32)
    is_decode = len(tokens) == 1
    return TokenBatch(
        token_ids=np.array(tokens, np.int32),
        positions=positions,
        rope_lengths=np.maximum(positions + 1, rope_length),
        write_page=1 + positions // PAGE,
        write_offset=positions % PAGE,
        page_table=np.arange(1, pages + 1, dtype=np.int32)[None],
        query_start=0 * one,
        query_len=len(tokens) * one,
        context_len=(start + len(tokens)) * one,
        num_decode_rows=np.int32(is_decode),
        num_rows=np.int32(1),
    )


def sequence_logits(
    model: AbstractModel,
    leaves: tuple[jax.Array, ...],
    tokens: list[int],
    *,
    prompt_len: int,
    chunk: int,
    kv_format: KVFormat | None = None,
) -> np.ndarray:
    """float32 logits [len(tokens), V]: the prompt in chunks of `chunk`, the rest one token a step."""
    pages = -(-len(tokens) // PAGE)

    @partial(jax.jit, donate_argnums=1)
    def step(leaves, cache, batch):
        built = model.merge(leaves)
        hidden, cache = built.forward(batch, cache, max_query_len=batch.token_ids.shape[0])
        return cache, built.logits(hidden)

    cache, logits, at = empty_cache(model, pages, kv_format), [], 0
    while at < len(tokens):
        size = min(chunk, prompt_len - at) if at < prompt_len else 1
        batch = jax.tree.map(jnp.asarray, one_row(tokens[at : at + size], at, pages=pages, rope_length=prompt_len))
        cache, out = step(leaves, cache, batch)
        logits.append(np.asarray(out))
        at += size
    return np.concatenate(logits)
