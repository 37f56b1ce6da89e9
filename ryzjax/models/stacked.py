"""StackedModel: a model's layers stacked by kind, so that one scan runs over them; for training.

Layers that differ in weights alone are one stack [count, ...]. Where kinds alternate (Gemma: five sliding layers, one
full), a turn of the scan runs one period of them; what is left over after whole periods runs behind the scan. Serving
unrolls its layers instead: see docs/structure.md for the measurements behind both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ryzjax.batch import SegmentBatch
from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.decoder import Decoder
from ryzjax.models.registry import AbstractModel
from ryzjax.models.weight_spec import WeightSpec

__all__ = ["LayerStack", "StackedModel", "segment_lengths"]

PyTree = object
Prepare = Callable[[Block, "LayerStack", PyTree], None]
"""Changes a merged block before it runs, given the block's slice of the extras."""


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """Layers of one kind: `first`, `first + stride`, ..., `count` of them.

    Attributes:
      graphdef, state: of each of them; shapes instead of arrays.
      paths: its weights as the block names them ("attention.q.weight"), in the order of the state's leaves.
      rope: of its attention.
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
        """As a slice of the model's layers: "layers[0::1]"."""
        return f"layers[{self.first}::{self.stride}]" if self.count > 1 else f"layers[{self.first}]"

    @property
    def layers(self) -> range:
        """Indices of its layers in the model."""
        return range(self.first, self.first + self.stride * self.count, self.stride)

    def block(self, weights: Mapping[str, jax.Array]) -> Block:
        """One layer over its own weights, by path; floats are cast to what the model computes in."""
        leaves = [
            _as_declared(weights[path], leaf)
            for path, leaf in zip(self.paths, jax.tree.leaves(self.state), strict=True)
        ]
        return nnx.merge(self.graphdef, jax.tree.unflatten(jax.tree.structure(self.state), leaves))


class StackedModel:
    """See the module's docstring.

    Args:
      model: may have quantized layers; layers quantized otherwise than their neighbours are another kind.
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
        behind = range(period * repeats if repeats > 1 else 0, len(kinds))
        self.tail = tuple(stack(first, 1) for first in behind)
        self.outer = {name: spec for name, spec in model.weights.items() if not name.startswith("layers.")}
        self.weights = dict(self._specs())

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """All of them: those the scan runs over, then the rest."""
        return (*self.scanned, *self.tail)

    def _specs(self) -> Iterator[tuple[str, WeightSpec]]:
        """Name -> spec of the outer weights, as the model names them, and of the stacks' ("layers[0::1].mlp.up")."""
        yield from self.outer.items()
        for stack in self.stacks:
            for path in stack.paths:
                one = self.model.weights[f"layers.{stack.first}.{path}"]
                yield (
                    f"{stack.name}.{path}",
                    WeightSpec(
                        shape=(stack.count, *one.shape),
                        dtype=one.dtype,
                        stored_dtype=one.stored_dtype,
                        sharding=self.model.placement.stacked(one.sharding),
                    ),
                )

    def stack(self, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A model's weights by name -> stacked ones. Takes them out of `weights`, so that no two copies are held."""
        stacked = {name: weights.pop(name) for name in self.outer}
        for stack in self.stacks:
            for path in stack.paths:
                name = f"{stack.name}.{path}"
                sharding = self.weights[name].sharding
                parts = [weights.pop(f"layers.{layer}.{path}") for layer in stack.layers]
                stacked[name] = jax.jit(lambda *parts: jnp.stack(parts), out_shardings=sharding)(*parts)
        return stacked

    def unstack(self, weights: Mapping[str, jax.Array]) -> Iterator[tuple[str, jax.Array]]:
        """The reverse: (name as the model has it, weight), one layer's at a time."""
        for name in self.outer:
            yield name, weights[name]
        for stack in self.stacks:
            for path in stack.paths:
                for index, layer in enumerate(stack.layers):
                    yield f"layers.{layer}.{path}", weights[f"{stack.name}.{path}"][index]

    def decoder(self, weights: Mapping[str, jax.Array]) -> Decoder:
        """The model over its outer weights alone: embedding, final norm and head; cheap inside jit."""
        leaves = {name: _as_declared(weights[name], self._leaf(name)) for name in self.outer}
        return self.model.merge_some(leaves)

    def _leaf(self, name: str) -> jax.ShapeDtypeStruct:
        spec = self.model.weights[name]
        return jax.ShapeDtypeStruct(spec.shape, spec.stored_dtype)

    def blocks(
        self,
        x: jax.Array,
        weights: Mapping[str, jax.Array],
        batch: SegmentBatch,
        *,
        extras: Mapping[str, PyTree] | None = None,
        prepare: Prepare | None = None,
        wrap: Callable[[Callable], Callable] = lambda body: body,
    ) -> jax.Array:
        """All layers: [T, E] -> [T, E].

        Args:
          x: embedded tokens, the rows of `batch` behind each other.
          weights: stacked, by name.
          extras: name of a stack -> arrays [count, ...] that `prepare` is given slices of.
          prepare: what changes a block before it runs: adapters.
          wrap: of a turn of the scan: `jax.checkpoint`.
        """
        decoder = self.model.merge(tuple(jax.tree.leaves(self.model.state)))
        positions = batch.positions.reshape(-1)
        tables = decoder.rope_tables(positions, segment_lengths(batch).reshape(-1))

        def run(x: jax.Array, stacks: tuple[LayerStack, ...], slices: tuple[PyTree, ...]) -> jax.Array:
            for stack, (own, extra) in zip(stacks, slices, strict=True):  # pyright: ignore
                block = stack.block(own)
                if prepare is not None:
                    prepare(block, stack, extra)
                rope = None if stack.rope is None else tables[stack.rope]
                x, _ = block(x, rope, None, jnp.int32(0), batch, max_query_len=batch.token_ids.shape[1])
            return x

        def of(stack: LayerStack) -> tuple[dict[str, jax.Array], PyTree]:
            own = {path: weights[f"{stack.name}.{path}"] for path in stack.paths}
            return own, {} if extras is None else extras.get(stack.name, {})

        def turn(x: jax.Array, slices: tuple[PyTree, ...]) -> tuple[jax.Array, None]:
            return run(x, self.scanned, slices), None

        if self.scanned:
            x, _ = lax.scan(wrap(turn), x, tuple(of(stack) for stack in self.scanned))
        for stack in self.tail:
            only = jax.tree.map(lambda array: array[0], of(stack))
            x = wrap(lambda x, own, stack=stack: run(x, (stack,), (own,)))(x, only)
        return x


def segment_lengths(batch: SegmentBatch) -> jax.Array:
    """int [rows, S]: tokens of the segment that each token belongs to; 1 in padding."""

    def of_row(segments: jax.Array, positions: jax.Array) -> jax.Array:
        last = jax.ops.segment_max(positions, segments, num_segments=segments.shape[0] + 1)
        return jnp.where(segments > 0, last[segments] + 1, 1)

    return jax.vmap(of_row)(batch.segment_ids, batch.positions)


def _as_declared(array: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """A float in the dtype that the model computes with it in; masters are wider."""
    return array.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else array


def _shapes(state: nnx.State) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    return tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(state))


def _period(kinds: Sequence[object]) -> int:
    """The shortest run of kinds that the layers repeat, the last time perhaps in part."""
    return next(
        period for period in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % period] for i in range(len(kinds)))
    )
