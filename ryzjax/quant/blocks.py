"""BlockRunner: one block of a model over whole sequences, without an engine, its linear layers' inputs observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import storage_dtype
from ryzjax.layers.block import Block
from ryzjax.layers.linear import Linear
from ryzjax.layers.rope import Rope
from ryzjax.models.registry import AbstractModel

__all__ = ["BlockRunner", "Observed"]

_PAGE_TOKENS = 256

Moments = dict[str, jax.Array]
"""Linear layer of a block -> sum of x x^T over the tokens it saw, float32 [K, K]."""


class Observed(nnx.Module):
    """A linear layer that tells what it is given.

    Args:
      linear: does the work.
      name: under which its input is told.
      seen: filled while the call is traced.
    """

    def __init__(self, linear: Linear, name: str, seen: _Seen):
        self.linear = linear
        self.name = name
        self.seen = seen

    def __call__(self, x: jax.Array) -> jax.Array:
        """As the linear layer; the sum of x x^T over the tokens is told."""
        self.seen.moments[self.name] = jnp.einsum("TK,TL->KL", x, x, preferred_element_type=jnp.float32)
        return self.linear(x)


class _Seen:
    """Where traced values are put; compares equal to any other, for it is no part of the model."""

    def __init__(self) -> None:
        self.moments: Moments = {}


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A block without weights, and what it needs beside them."""

    graphdef: nnx.GraphDef[Block]
    state: nnx.State
    names: tuple[str, ...]
    rope: Rope | None


class BlockRunner:
    """Runs single blocks of a model over batches of sequences of one length.

    Args:
      model: may have quantized layers.
      sequence_tokens: of every sequence.
    """

    def __init__(self, model: AbstractModel, *, sequence_tokens: int):
        self.model = model
        self.sequence_tokens = sequence_tokens
        decoder = model.merge(tuple(jax.tree.leaves(model.state)))
        self._blocks = [self._prepare(i, block) for i, block in enumerate(decoder.layers)]

    def _prepare(self, index: int, block: Block) -> _Prepared:
        graphdef, state = nnx.split(block)
        names = tuple(f"layers.{index}.{'.'.join(map(str, path))}" for path, _ in nnx.to_flat_state(state))
        return _Prepared(graphdef=graphdef, state=state, names=names, rope=block.attention.rope)

    def weight_names(self, layer: int) -> tuple[str, ...]:
        """Of one block, as `AbstractModel.weights` has them."""
        return self._blocks[layer].names

    def __call__(
        self, layer: int, weights: Mapping[str, jax.Array], hidden: jax.Array, *, observe: Sequence[str] = ()
    ) -> tuple[jax.Array, Moments]:
        """Runs block `layer`.

        Args:
          weights: at least the block's own.
          hidden: [B, S, E].
          observe: linear layers of the block ("attention.q") whose inputs are wanted.

        Returns:
          [B, S, E], and the moments of the observed inputs, summed over all tokens.
        """
        block = self._blocks[layer]
        leaves = tuple(weights[name] for name in block.names)
        state = jax.tree.unflatten(jax.tree.structure(block.state), leaves)
        return self._forward(hidden.shape[0])(block.graphdef, block.rope, tuple(observe), state, hidden)

    def _forward(self, rows: int):
        return partial(_run, _Shape(self.model, rows, self.sequence_tokens))


class _Shape:
    """What a compiled block depends on beside its graph: hashed by value, so that blocks of one kind share it."""

    def __init__(self, model: AbstractModel, rows: int, tokens: int):
        self.model = model
        self.key = (model.config, id(model.placement), rows, tokens)
        self.rows, self.tokens = rows, tokens

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self.key == other.key

    def batch(self) -> tuple[TokenBatch, KVCache]:
        """All rows as prefill chunks from position 0, and an empty cache of one layer for them."""
        config, placement = self.model.config, self.model.placement
        page = min(_PAGE_TOKENS, self.tokens)
        pages = -(-self.tokens // page)
        table = 1 + np.arange(self.rows * pages, dtype=np.int32).reshape(self.rows, pages)
        positions = np.tile(np.arange(self.tokens, dtype=np.int32), self.rows)
        row = np.repeat(np.arange(self.rows), self.tokens)
        full = np.full(self.rows, self.tokens, np.int32)
        fields = dict(
            token_ids=np.zeros(len(positions), np.int32),
            positions=positions,
            rope_lengths=np.full(len(positions), self.tokens, np.int32),
            write_page=table[row, positions // page],
            write_offset=positions % page,
            page_table=table,
            query_start=(np.arange(self.rows) * self.tokens).astype(np.int32),
            query_len=full,
            context_len=full,
            num_decode_rows=np.int32(0),
            num_rows=np.int32(self.rows),
        )
        batch = TokenBatch(**{name: jnp.asarray(value) for name, value in fields.items()})
        shape = (1, 1 + self.rows * pages, config.num_kv_heads, page, config.head_dim)
        cache = jnp.zeros(shape, storage_dtype(config.dtype))
        cache = placement.constrain(cache, None, None, "kv_heads", None, None)
        return batch, KVCache(k=cache, v=cache)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    shape: _Shape,
    graphdef: nnx.GraphDef[Block],
    rope: Rope | None,
    observe: tuple[str, ...],
    state: nnx.State,
    hidden: jax.Array,
) -> tuple[jax.Array, Moments]:
    block = nnx.merge(graphdef, state)
    seen = _Seen()
    for name in observe:
        *path, last = name.split(".")
        owner: object = block
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, Observed(getattr(owner, last), name, seen))
    batch, cache = shape.batch()
    table = None if rope is None else rope.cos_sin(batch.positions, batch.rope_lengths)
    rows, tokens, size = hidden.shape
    x = shape.model.placement.constrain(hidden.reshape(rows * tokens, size), "tokens", None)
    out, _ = block(x, table, cache, jnp.int32(0), batch, max_query_len=tokens)
    return out.reshape(rows, tokens, size), seen.moments
