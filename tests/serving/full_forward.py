"""The reference for engines: one forward pass of the same weights over whole prompts, with its own cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax import LLM
from ryzjax.batch import KVCache, TokenBatch
from ryzjax.models.decoder import Decoder


class Full(NamedTuple):
    """The hidden states of one prompt after the final norm [P, E], and log_softmax of its logits [P, V]."""

    normed: np.ndarray
    logprobs: np.ndarray


def full_forward(
    llm: LLM,
    prompts: list[list[int]],
    change: Callable[[Decoder], None] = lambda model: None,
    leaves: tuple[jax.Array, ...] | None = None,
) -> list[Full]:
    """Runs every prompt in one chunk, all in one step.

    The weights are those of the engine or `leaves`. The model can be changed first.
    """
    runner = llm.engine.runner
    page, shape = runner.page_size_tokens, runner.cache.k.shape
    lengths = np.array([len(prompt) for prompt in prompts])
    pages = -(-int(lengths.max()) // page)
    empty = jnp.zeros((shape[0], len(prompts) * pages + 1, *shape[2:]), runner.cache.k.dtype)
    positions = np.concatenate([np.arange(length) for length in lengths])
    table = 1 + np.arange(len(prompts) * pages).reshape(len(prompts), pages)
    starts = np.cumsum(lengths) - lengths
    batch = TokenBatch(
        token_ids=jnp.concatenate([jnp.asarray(prompt) for prompt in prompts]),
        positions=jnp.asarray(positions),
        rope_lengths=jnp.asarray(np.repeat(lengths, lengths)),
        write_page=jnp.asarray(table[np.repeat(np.arange(len(prompts)), lengths), positions // page]),
        write_offset=jnp.asarray(positions % page),
        page_table=jnp.asarray(table),
        query_start=jnp.asarray(starts),
        query_len=jnp.asarray(lengths),
        context_len=jnp.asarray(lengths),
        num_decode_rows=jnp.int32(0),
        num_rows=jnp.int32(len(prompts)),
    )

    @jax.jit
    def forward(leaves: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        model = runner.model.merge(leaves)
        change(model)
        hidden, _ = model.forward(batch, KVCache(empty, empty), max_query_len=len(positions))
        return model.final_norm(hidden), jax.nn.log_softmax(model.logits(hidden))

    parts = (np.split(np.asarray(array), starts[1:]) for array in forward(leaves or runner.leaves))
    return [Full(*both) for both in zip(*parts, strict=True)]
