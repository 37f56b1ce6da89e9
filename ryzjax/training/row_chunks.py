"""RowChunks: runs a layer on some tokens at a time, so that its inner activations never exist for all tokens at once.

The inner activations of an MLP, of which the backward pass holds several copies, are the largest temporaries of a
block. The float32 products of the attention projections come next. Tokens do not interact in either, so they can pass
through in chunks that are processed sequentially. Each chunk is computed again for its gradient. The inputs and outputs
of chunks are kept as bits (`ryzjax.bits`). docs/log.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float, Int

from ryzjax.bits import from_bits, storage_dtype, to_bits
from ryzjax.layers.linear import Linear
from ryzjax.layers.mlp import GatedMLP
from ryzjax.lora.linear import AdaptedLinear, DropoutKey

__all__ = ["RowChunks"]

Leaves = Sequence[jax.Array]


class RowChunks(nnx.Module):
    """A drop-in replacement for a layer that runs it on chunks of tokens.

    Args:
      layer: The layer that does the work.
      rows: Tokens per chunk. The last chunk is padded.
    """

    def __init__(self, layer: GatedMLP | Linear | AdaptedLinear, rows: int):
        self.layer = layer
        self.rows = rows

    def __call__(self, x: Float[Array, "T K"]) -> Float[Array, "T N"]:
        """Maps [T, K] to [T, N], in the dtype of `x`."""
        count = x.shape[0]
        if count <= self.rows:
            return self.layer(x).astype(x.dtype)
        graphdef, state = nnx.split(self.layer)
        leaves, treedef = jax.tree.flatten(state)
        chunks = jnp.pad(x, ((0, -count % self.rows), (0, 0))).reshape(-1, self.rows, x.shape[1])
        out: jax.Array = _map(_Layer(graphdef, partial(jax.tree.unflatten, treedef)), leaves, chunks)
        return out.reshape(-1, out.shape[-1])[:count]


@dataclass(frozen=True)
class _Layer:
    """A layer without its arrays."""

    graphdef: nnx.GraphDef
    state_of: Callable[[Leaves], nnx.State]

    def __call__(self, leaves: Leaves, chunk: Int[Array, ""], x: Float[Array, "rows K"]) -> Float[Array, "rows N"]:
        """Maps [rows, K] to [rows, N]. Dropout draws anew for each chunk."""

        def own_key(variable: nnx.Variable) -> nnx.Variable:
            is_key = isinstance(variable, DropoutKey)
            return variable.replace(jax.random.fold_in(variable[...], chunk)) if is_key else variable

        state = self.state_of(leaves)
        state = jax.tree.map(own_key, state, is_leaf=lambda node: isinstance(node, nnx.Variable))
        return nnx.merge(self.graphdef, state)(x).astype(x.dtype)  # pyright: ignore[reportCallIssue]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _map(layer: _Layer, leaves: Leaves, chunks: Float[Array, "chunks rows K"]) -> Float[Array, "chunks rows N"]:
    """Maps [chunks, rows, K] to [chunks, rows, N]."""

    def one(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        i, bits = at
        return _bits(layer(leaves, i, from_bits(bits)))

    return from_bits(lax.map(one, (jnp.arange(len(chunks)), _bits(chunks))))


class _Saved(NamedTuple):
    """What the backward pass needs.

    Attributes:
      trained: The layer's arrays that need a gradient; None in place of the others.
      frozen: The layer's other arrays; None in place of the trained ones.
      chunks: The layer's input.
    """

    trained: list[jax.Array | None]
    frozen: list[jax.Array | None]
    chunks: jax.Array


def _forward(layer: _Layer, leaves: list[CustomVJPPrimal], chunks: CustomVJPPrimal) -> tuple[jax.Array, _Saved]:
    trained = [leaf.value if leaf.perturbed else None for leaf in leaves]
    frozen = [None if leaf.perturbed else leaf.value for leaf in leaves]
    return _map(layer, [leaf.value for leaf in leaves], chunks.value), _Saved(trained, frozen, chunks.value)


def _backward(layer: _Layer, saved: _Saved, grad: jax.Array) -> tuple[list[jax.Array | None], jax.Array]:
    trained, frozen, chunks = saved

    def one(sums: list, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[list, jax.Array]:
        i, bits, grad_bits = at

        def call(trained: list, x: jax.Array) -> jax.Array:
            return layer([t if f is None else f for t, f in zip(trained, frozen, strict=True)], i, x)

        parts, x_grad = jax.vjp(call, trained, from_bits(bits))[1](from_bits(grad_bits))
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, parts), _bits(x_grad)

    zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), trained)
    sums, x_grad = lax.scan(one, zeros, (jnp.arange(len(chunks)), _bits(chunks), _bits(grad)))
    return jax.tree.map(lambda total, array: total.astype(array.dtype), sums, trained), from_bits(x_grad)


_map.defvjp(_forward, _backward, symbolic_zeros=True)


def _bits(x: jax.Array) -> jax.Array:
    return to_bits(x, storage_dtype(x.dtype))
