"""The compiled programs that read the hidden states of a prompt: log-probabilities, and one vector of it.

    gather(hidden, indices)                     -> rows [N, E]           one a token bucket, a copy
    score(outer, rows, next_tokens)             -> result                one, the head over a tile
    pool(outer, sums, rows, slots, restarts)    -> sums, totals [N, E]   one

Tiles (see `host.prompt_tiles`) have one size, so only `gather`, which compiles in no time, is made for each bucket,
and N x V logits exist at a time, however long the chunk. Steps without such tokens run none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.models.abstract import AbstractModel
from ryzjax.ops.sampling.sampling import score
from ryzjax.serving.device.step import pack_result

__all__ = ["make_gather", "make_pool", "make_score", "tile_tokens"]

_CPU_TILE_TOKENS = 16
_TILE_TOKENS = 64


def tile_tokens() -> int:
    """Positions of a tile. The head's weights are read once for so many tokens, and so many rows of logits exist.

    A tile that is mostly padding costs as much as a full one, so a CPU, which computes prompts beside decoding
    sequences in steps of 16 tokens, has tiles of that size.
    """
    return _CPU_TILE_TOKENS if jax.default_backend() == "cpu" else _TILE_TOKENS


def make_gather(model: AbstractModel) -> Callable[..., jax.Array]:
    """Rows of a step's hidden states [T, E] by token index."""

    def gather(hidden: jax.Array, indices: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(hidden[indices], model.placement.replicated)

    return gather


def make_score(model: AbstractModel) -> Callable[..., jax.Array]:
    """Raw log-probability, rank and alternatives of the token after each row: int32 [N, RESULT_FIELDS]."""

    def score_tile(outer: Mapping[str, jax.Array], rows: jax.Array, next_tokens: jax.Array) -> jax.Array:
        logits = lax.with_sharding_constraint(model.merge_some(outer).logits(rows), model.placement.replicated)
        return pack_result(score(logits, next_tokens))

    return score_tile


def make_pool(model: AbstractModel) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Sums of normalised hidden states by slot, float32 [slots, E], and each slot's sum after each row.

    Tokens are added one by one in the order of their positions, so that a sum does not depend on how the prompt was
    cut into chunks and tiles, nor on what else is in them.
    """

    def pool(
        outer: Mapping[str, jax.Array], sums: jax.Array, rows: jax.Array, slots: jax.Array, restarts: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        normed = model.merge_some(outer).final_norm(rows).astype(jnp.float32)

        def add(sums: jax.Array, token: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            row, slot, restarts = token
            total = jnp.where(restarts != 0, row, sums[slot] + row)
            return sums.at[slot].set(total, mode="drop"), total

        return lax.scan(add, sums, (normed, slots, restarts))

    return pool
