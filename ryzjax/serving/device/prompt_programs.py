"""The compiled programs that read the hidden states of a prompt, to score its tokens or to pool it into one vector.

    gather(hidden, indices)                     -> rows [M, E]           one for each token bucket, a copy
    score(outer, rows, next_tokens)             -> result                one, the head over a tile
    pool(outer, sums, rows, slots, restarts)    -> sums, totals [M, E]   one

All tiles (see `host.prompt_tiles`) have the same size. Only `gather`, which compiles at once, exists for each bucket,
and M x V logits exist at a time, however long the chunk. A step without such positions runs none of these programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.models.abstract import AbstractModel
from ryzjax.ops.sampling.sampling import score
from ryzjax.serving.device.program import Program, StepShapes
from ryzjax.serving.device.step_result import pack_result

__all__ = ["gather_program", "make_pool", "pool_program", "score_program", "tile_tokens"]

_CPU_TILE_TOKENS = 16
_TILE_TOKENS = 64


def tile_tokens() -> int:
    """Returns the positions of a tile: the head's weights are read once for a tile, and it has as many rows of logits.

    A tile that is mostly padding costs as much as a full one. A CPU computes prompts beside decoding sequences in steps
    of 16 tokens, so its tiles have that size.
    """
    return _CPU_TILE_TOKENS if jax.default_backend() == "cpu" else _TILE_TOKENS


def _make_gather(model: AbstractModel) -> Callable[..., jax.Array]:

    def gather(hidden: jax.Array, indices: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(hidden[indices], model.placement.replicated)

    return gather


def gather_program(shapes: StepShapes, tokens: int) -> Program:
    """Declares the program that copies rows of a step's hidden states [T, E] by token index."""
    return Program(
        key=("gather", tokens),
        function=_make_gather(shapes.model),
        arguments=(shapes.hidden(tokens), shapes.replicated((shapes.tile_tokens,), jnp.int32)),
        out_shardings=shapes.model.placement.replicated,
    )


def _make_score(model: AbstractModel) -> Callable[..., jax.Array]:

    def score_tile(outer: Mapping[str, jax.Array], rows: jax.Array, next_tokens: jax.Array) -> jax.Array:
        logits = lax.with_sharding_constraint(model.merge_some(outer).logits(rows), model.placement.replicated)
        return pack_result(score(logits, next_tokens))

    return score_tile


def score_program(shapes: StepShapes) -> Program:
    """Declares the program that scores a tile of prompt tokens.

    Its result has the raw log-probability, the rank and the alternatives of the token after each row: int32
    [M, RESULT_FIELDS].
    """
    size = shapes.tile_tokens
    return Program(
        key=("score", size),
        function=_make_score(shapes.model),
        arguments=(shapes.outer, shapes.hidden_rows(size), shapes.replicated((size,), jnp.int32)),
        out_shardings=shapes.model.placement.replicated,
    )


def make_pool(model: AbstractModel) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the function that adds normalized hidden states to the sums of their slots.

    It returns the sums, float32 [slots, E], and the sum of a row's slot after each row. Tokens are added one by one in
    the order of their positions, so that a sum does not depend on how the prompt is cut into chunks and tiles, nor on
    the other tokens in them.
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


def pool_program(shapes: StepShapes) -> Program:
    """Declares the program that pools a tile of prompt positions."""
    size = shapes.tile_tokens
    column = shapes.replicated((size,), jnp.int32)
    return Program(
        key=("pool", size),
        function=make_pool(shapes.model),
        arguments=(shapes.outer, shapes.sums, shapes.hidden_rows(size), column, column),
        out_shardings=shapes.model.placement.replicated,
        donated=(1,),
    )
