"""StackedModel: a model whose layers are stacked by kind, so that one scan runs over them. Training uses it.

Layers that differ only in their weights form one stack [count, ...]. If the kinds alternate, as in Gemma (five sliding
layers, one full layer), an iteration of the scan runs one period of layers. The layers that remain after the last
whole period run after the scan. Serving unrolls its layers instead. docs/structure.md has the measurements behind both
choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ryzjax.batch import SegmentBatch
from ryzjax.bits import from_bits, storage_dtype, to_bits
from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.decoder import Decoder
from ryzjax.models.scan_layers import Received, Remat, scan_layers, with_remat
from ryzjax.models.weight_names import layer_name
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding.host_memory import is_host_sharding, is_on_host, to_device

__all__ = ["Build", "LayerStack", "StackedModel", "segment_lengths"]

PyTree = object
Build = Callable[["LayerStack", PyTree, PyTree], Block]
"""(stack, one layer's slices of the trained arrays, one layer's slices of the frozen arrays) -> the layer."""


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """`count` layers of one kind, with the indices `first`, `first + stride`, and so on.

    Attributes:
      first: Index of the first layer.
      stride: Distance between the indices of neighbours.
      count: Number of layers.
      graphdef, state: The NNX structure and state of one layer. The state has shapes instead of arrays.
      paths: The names of a layer's weights in its block ("attention.q.weight"), in the order of the state's leaves.
      rope: The rotary embedding of the layers; None without one.
    """

    first: int
    stride: int
    count: int
    graphdef: nnx.GraphDef[Block]
    state: nnx.State
    paths: tuple[str, ...]
    rope: Rope | None

    @property
    def name(self) -> str:
        """The name of the stack, a slice of the model's layers: "layers[0::1]"."""
        return f"layers[{self.first}::{self.stride}]" if self.count > 1 else f"layers[{self.first}]"

    @property
    def layers(self) -> range:
        """The indices of the layers in the model."""
        return range(self.first, self.first + self.stride * self.count, self.stride)

    def select(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the stack's weights by path, each [count, ...], from stacked weights by name."""
        return {path: weights[f"{self.name}.{path}"] for path in self.paths}

    def block(self, weights: Mapping[str, jax.Array]) -> Block:
        """Returns one layer over its own weights, by path. Floats are cast to the dtype that the model computes in."""
        leaves = [
            _as(weights[path], leaf.dtype) for path, leaf in zip(self.paths, jax.tree.leaves(self.state), strict=True)
        ]
        return nnx.merge(self.graphdef, jax.tree.unflatten(jax.tree.structure(self.state), leaves))


class StackedModel:
    """A model with stacked layers.

    Args:
      model: The abstract model. Its layers may be quantized. Layers with different formats are different kinds.

    Attributes:
      scanned: The stacks that the scan runs over, in the order of their layers within a period.
      tail: The stacks, of one layer each, that run after the scan.
      outer: Name -> spec of the weights outside the layers.
      weights: Name -> spec of the outer weights and of the stacked weights.
    """

    def __init__(self, model: AbstractModel):
        self.model = model
        decoder = model.merge(tuple(jax.tree.leaves(model.state)))
        split = [nnx.split(layer) for layer in decoder.layers]
        ropes = [layer.attention.rope for layer in decoder.layers]
        kinds = [(graphdef, rope, _shapes(state)) for (graphdef, state), rope in zip(split, ropes, strict=True)]
        period = _period(kinds)
        repeats = len(kinds) // period

        def stack(first: int, count: int) -> LayerStack:
            graphdef, state = split[first]
            paths = tuple(".".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
            return LayerStack(
                first=first,
                stride=period,
                count=count,
                graphdef=graphdef,
                state=state,
                paths=paths,
                rope=ropes[first],
            )

        self.scanned = tuple(stack(first, repeats) for first in range(period)) if repeats > 1 else ()
        after = range(period * repeats if repeats > 1 else 0, len(kinds))
        self.tail = tuple(stack(first, 1) for first in after)
        self.outer = {name: model.weights[name] for name in model.outer_names}
        self.weights = dict(self._specs())

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """All stacks: `scanned`, then `tail`."""
        return (*self.scanned, *self.tail)

    def _specs(self) -> Iterator[tuple[str, WeightSpec]]:
        """Yields name -> spec of the outer weights, under the model's names, and of the stacks ("layers[0::1].mlp.up").

        Stacks of bfloat16 are stored as their bits (`ryzjax.bits`), because the scan slices them.
        """
        yield from self.outer.items()
        for stack in self.stacks:
            for path in stack.paths:
                one = self.model.weights[layer_name(stack.first, path)]
                yield (
                    f"{stack.name}.{path}",
                    WeightSpec(
                        shape=(stack.count, *one.shape),
                        dtype=one.dtype,
                        stored_dtype=storage_dtype(one.stored_dtype),
                        sharding=self.model.placement.stacked(one.sharding),
                    ),
                )

    def stack(self, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Stacks a model's weights. Removes them from `weights`, so that there are never two copies of all weights."""
        stacked = {name: weights.pop(name) for name in self.outer}
        for stack in self.stacks:
            for path in stack.paths:
                name = f"{stack.name}.{path}"
                sharding = self.weights[name].sharding
                parts = [weights.pop(layer_name(layer, path)) for layer in stack.layers]
                if is_host_sharding(sharding):
                    stacked[name] = _stack_on_host(parts, sharding)
                else:
                    stacked[name] = jax.jit(_stack, out_shardings=sharding)(*parts)
        return stacked

    def unstack(self, weights: Mapping[str, jax.Array]) -> Iterator[tuple[str, jax.Array]]:
        """Reverses `stack`: yields (the model's name, weight), one layer at a time."""
        for name in self.outer:
            yield name, weights[name]
        for stack in self.stacks:
            for path in stack.paths:
                whole = weights[f"{stack.name}.{path}"]
                # JAX computes nothing on arrays in the host's memory, so numpy slices them.
                parts = map(jnp.asarray, np.asarray(whole)) if is_on_host(whole) else whole
                for layer, part in zip(stack.layers, parts, strict=True):
                    name = layer_name(layer, path)
                    yield name, _as(part, self.model.weights[name].stored_dtype)

    def decoder(self, weights: Mapping[str, jax.Array]) -> Decoder:
        """Returns the model over its outer weights alone: embedding, final norm and head. This is cheap inside jit."""
        return self.model.merge_some({name: _as(weights[name], spec.stored_dtype) for name, spec in self.outer.items()})

    def blocks(
        self,
        x: Float[Array, "T E"],
        batch: SegmentBatch,
        *,
        trained: Mapping[str, PyTree],
        frozen: Mapping[str, PyTree],
        build: Build,
        remat: Remat,
        remat_layers: int = 1,
    ) -> Float[Array, "T E"]:
        """Runs all layers, and returns hidden states [T, E] before the final norm.

        Args:
          x: The embedded tokens [T, E], with the rows of `batch` concatenated.
          batch: The packed rows.
          trained, frozen: Name of a stack -> arrays [count, ...], of which each layer gets its slices. Gradients flow
            to `trained` and to `x`. With remat "full", the trained arrays of a stack in `scanned` may be `Received`.
          build: Builds a block of a stack from its slices of both.
          remat: What is kept for the backward pass.
          remat_layers: The argument of `scan_layers`; it counts iterations of the scan.
        """
        decoder = self.model.merge(tuple(jax.tree.leaves(self.model.state)))
        lengths = segment_lengths(batch).reshape(-1)
        shared = _Shared(
            batch, {str(r): t for r, t in decoder.rope_tables(batch.positions.reshape(-1), lengths).items()}
        )

        def attend(stack: LayerStack, x: jax.Array, own: PyTree, rest: PyTree, shared: _Shared) -> jax.Array:
            rope = None if stack.rope is None else shared.ropes[str(stack.rope)]
            length = shared.batch.token_ids.shape[1]
            block = build(stack, own, rest)
            return block.attend(x, rope, None, jnp.int32(0), shared.batch, max_query_len=length)[0]

        def feed_forward(stack: LayerStack, x: jax.Array, own: PyTree, rest: PyTree, shared: _Shared) -> jax.Array:
            del shared
            return build(stack, own, rest).feed_forward(x)

        def layer(stack: LayerStack, x: jax.Array, own: PyTree, rest: PyTree, shared: _Shared) -> jax.Array:
            rest = to_device(rest)
            return feed_forward(stack, attend(stack, x, own, rest, shared), own, rest, shared)

        def iteration_stage(
            half: Callable, index: int, x: jax.Array, own: tuple[PyTree, ...], rest: tuple[PyTree, ...], shared: _Shared
        ) -> jax.Array:
            return half(self.scanned[index], x, own[index], rest[index], shared)

        def arrays_of(stacks: tuple[LayerStack, ...], arrays: Mapping[str, PyTree]) -> tuple[PyTree, ...]:
            return tuple(arrays.get(stack.name, {}) for stack in stacks)

        if self.scanned:
            x = scan_layers(
                [
                    partial(iteration_stage, half, i)
                    for i in range(len(self.scanned))
                    for half in (attend, feed_forward)
                ],
                x,
                _joined(arrays_of(self.scanned, trained)),
                arrays_of(self.scanned, frozen),
                shared,
                remat=remat,
                remat_layers=remat_layers,
            )
        for stack in self.tail:
            arrays = trained.get(stack.name, {}), frozen.get(stack.name, {})
            own, rest = jax.tree.map(lambda array: array[0], arrays)
            x = with_remat(partial(layer, stack), remat)(x, own, rest, shared)
        return x


class _Shared(NamedTuple):
    """The arguments that all layers share.

    Attributes:
      batch: The packed rows.
      ropes: Text of a rotary embedding -> cos and sin of the tokens.
    """

    batch: SegmentBatch
    ropes: dict[str, tuple[jax.Array, jax.Array]]


def _joined(trained: tuple[PyTree, ...]) -> PyTree:
    """Joins the trained arrays of several stacks into one argument of `scan_layers`."""
    if not any(isinstance(own, Received) for own in trained):
        return trained
    pairs = [own if isinstance(own, Received) else Received(own, own) for own in trained]
    return Received(*zip(*pairs, strict=True))


def segment_lengths(batch: SegmentBatch) -> Int[Array, "R C"]:
    """Returns, for each token, the number of tokens of its segment. It is 1 in padding."""

    def row_lengths(segments: jax.Array, positions: jax.Array) -> jax.Array:
        last = jax.ops.segment_max(positions, segments, num_segments=segments.shape[0] + 1)
        return jnp.where(segments > 0, last[segments] + 1, 1)

    return jax.vmap(row_lengths)(batch.segment_ids, batch.positions)


def _stack(*parts: jax.Array) -> jax.Array:
    stacked = jnp.stack(parts)
    return to_bits(stacked, jnp.uint16) if stacked.dtype == jnp.bfloat16 else stacked


def _stack_on_host(parts: Sequence[jax.Array], sharding: jax.sharding.Sharding) -> jax.Array:
    """Stacks arrays in the host's memory, without a copy on the device."""
    stacked = np.stack([np.asarray(part) for part in parts])
    return jax.device_put(stacked.view(np.uint16) if stacked.dtype == jnp.bfloat16 else stacked, sharding)


def _as(array: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns stored values in the dtype that the model computes in. Bits become floats; masters are rounded."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return array
    return (from_bits(array) if dtype == jnp.bfloat16 else array).astype(dtype)


def _shapes(state: nnx.State) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    return tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(state))


def _period(kinds: Sequence[object]) -> int:
    """Returns the length of the shortest run of kinds that the layers repeat. The last repetition may be partial."""
    return next(
        period for period in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % period] for i in range(len(kinds)))
    )
