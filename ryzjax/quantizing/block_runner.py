"""BlockRunner: runs one block of a model over whole sequences without an engine, and observes its layers' inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.bits import storage_dtype
from ryzjax.layers.block import Block
from ryzjax.layers.linear import Linear
from ryzjax.layers.rope import Rope
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.weight_names import layer_name

__all__ = ["BlockRunner", "InputSums", "ObservedLinear"]

_PAGE_TOKENS = 256


class InputSums(NamedTuple):
    """Sums (or means) over tokens of products of a linear layer's inputs, float32 [K, K].

    x is the input in the model that is being quantized, and x + d is the input in the plain model.

    Attributes:
      inputs: Sum of x x^T.
      cross: Sum of d x^T.
      drift: Sum of d d^T; None if it was not asked for.
    """

    inputs: Float[Array, "K K"]
    cross: Float[Array, "K K"]
    drift: Float[Array, "K K"] | None


class ObservedLinear(nnx.Module):
    """A linear layer that records its inputs.

    Args:
      linear: The layer that computes the output.
      seen: The recorder, which is filled while the call is traced.
    """

    def __init__(self, linear: Linear, seen: _Recorder):
        self.linear = linear
        self.seen = seen

    def __call__(self, x: Float[Array, "T K"]) -> Float[Array, "T N"]:
        """Records `x` and applies the linear layer."""
        self.seen.inputs.append(x)
        return self.linear(x)


class _Recorder:
    """Holds the inputs that were traced."""

    def __init__(self) -> None:
        self.inputs: list[jax.Array] = []


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A block without weights.

    Attributes:
      graphdef, state: The block's structure, split from its abstract weights.
      names: The names of its weights in `AbstractModel.weights`, in the order of the state's leaves.
      rope: The rotary embedding of the block; None without one.
    """

    graphdef: nnx.GraphDef[Block]
    state: nnx.State
    names: tuple[str, ...]
    rope: Rope | None


class BlockRunner:
    """Runs single blocks of a model over batches of sequences of the same length.

    Args:
      model: The abstract model, which may have quantized layers.
      sequence_tokens: Tokens of every sequence.
    """

    def __init__(self, model: AbstractModel, *, sequence_tokens: int):
        self.model = model
        self.sequence_tokens = sequence_tokens
        decoder = model.merge(tuple(jax.tree.leaves(model.state)))
        self._blocks = [self._prepare(i, block) for i, block in enumerate(decoder.layers)]

    def _prepare(self, index: int, block: Block) -> _Prepared:
        graphdef, state = nnx.split(block)
        names = tuple(layer_name(index, ".".join(map(str, path))) for path, _ in nnx.to_flat_state(state))
        return _Prepared(graphdef=graphdef, state=state, names=names, rope=block.attention.rope)

    def weight_names(self, layer: int) -> tuple[str, ...]:
        """Returns the names of one block's weights in `AbstractModel.weights`."""
        return self._blocks[layer].names

    def advance(
        self, layer: int, weights: Mapping[str, jax.Array], hidden: Float[Array, "sequences tokens E"]
    ) -> Float[Array, "sequences tokens E"]:
        """Runs block `layer`, and returns its output [sequences, tokens, E].

        Args:
          layer: Index of the block.
          weights: Weight name -> array, at least for the block.
          hidden: Hidden states at the entry of the block, [sequences, tokens, E].
        """
        return _advance(self._shape(hidden), *self._block(layer, weights), hidden)

    def observe(
        self,
        layer: int,
        linear: str,
        *,
        weights: Mapping[str, jax.Array],
        hidden: Float[Array, "sequences tokens E"],
        plain_weights: Mapping[str, jax.Array],
        plain_hidden: Float[Array, "sequences tokens E"],
        with_drift: bool,
    ) -> InputSums:
        """Observes the inputs of a linear layer in a partly quantized model and in the plain one.

        Only the part of the block before the layer runs.

        Args:
          layer: Index of the block.
          linear: Name of the layer in the block, such as "attention.q".
          weights: The block's weights, quantized so far.
          hidden: Hidden states of the quantized model at the entry of the block, [sequences, tokens, E].
          plain_weights: The block's plain weights.
          plain_hidden: Hidden states of the plain model there.
          with_drift: Whether to compute `InputSums.drift`, a third of the work. Fitting does not need it; judging does.
        """
        shape = self._shape(hidden)
        graphdef, rope, state = self._block(layer, weights)
        plain_state = self._block(layer, plain_weights)[2]
        return _observe(shape, linear, with_drift, graphdef, rope, state, hidden, plain_state, plain_hidden)

    def _block(
        self, layer: int, weights: Mapping[str, jax.Array]
    ) -> tuple[nnx.GraphDef[Block], Rope | None, nnx.State]:
        block = self._blocks[layer]
        leaves = tuple(weights[name] for name in block.names)
        return block.graphdef, block.rope, jax.tree.unflatten(jax.tree.structure(block.state), leaves)

    def _shape(self, hidden: jax.Array) -> _Shape:
        return _Shape(self.model, hidden.shape[0], self.sequence_tokens)


class _Shape:
    """The static shape of a call. It is hashed by value, so that blocks of the same structure share a compiled program.

    Args:
      model: The abstract model.
      rows: Number of sequences.
      tokens: Tokens of each sequence.
    """

    def __init__(self, model: AbstractModel, rows: int, tokens: int):
        self.model = model
        self.key = (model.config, id(model.placement), rows, tokens)
        self.rows, self.tokens = rows, tokens

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self.key == other.key

    def batch(self) -> tuple[TokenBatch, KVCache]:
        """Returns a batch with all rows as prefill chunks from position 0, and an empty KV cache of one layer."""
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


def _call(shape: _Shape, block: Block, rope: Rope | None, hidden: jax.Array) -> jax.Array:
    batch, cache = shape.batch()
    table = None if rope is None else rope.cos_sin(batch.positions, batch.rope_lengths)
    rows, tokens, size = hidden.shape
    x = shape.model.placement.constrain(hidden.reshape(rows * tokens, size), "tokens", None)
    out, _ = block(x, table, cache, jnp.int32(0), batch, max_query_len=tokens)
    return out.reshape(rows, tokens, size)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    shape: _Shape, graphdef: nnx.GraphDef[Block], rope: Rope | None, state: nnx.State, hidden: jax.Array
) -> jax.Array:
    return _call(shape, nnx.merge(graphdef, state), rope, hidden)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _observe(
    shape: _Shape,
    linear: str,
    with_drift: bool,
    graphdef: nnx.GraphDef[Block],
    rope: Rope | None,
    state: nnx.State,
    hidden: jax.Array,
    plain_state: nnx.State,
    plain_hidden: jax.Array,
) -> InputSums:
    """Observes both models. The block's outputs are unused, so XLA drops everything after the observed layer."""
    inputs = []
    for weights, states in ((state, hidden), (plain_state, plain_hidden)):
        block = nnx.merge(graphdef, weights)
        seen = _Recorder()
        owner, _, name = linear.rpartition(".")
        parent = getattr(block, owner)
        setattr(parent, name, ObservedLinear(getattr(parent, name), seen))
        _call(shape, block, rope, states)
        inputs.append(seen.inputs[0].astype(jnp.float32))
    x, drift = inputs[0], inputs[1] - inputs[0]
    product = partial(jnp.einsum, "TK,TL->KL", preferred_element_type=jnp.float32)
    return InputSums(inputs=product(x, x), cross=product(drift, x), drift=product(drift, drift) if with_drift else None)
