"""LoraModel and FullModel: which arrays of a model are trained, which are frozen, and the forward pass over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.batch import SegmentBatch
from ryzjax.layers.block import Block
from ryzjax.layers.mlp import GatedMLP
from ryzjax.lora.adapter import Adapter, LoraWeights
from ryzjax.lora.config import LoraConfig
from ryzjax.lora.linear import Dropout, attach
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.scan_layers import Received, Remat
from ryzjax.models.stacked import Build, LayerStack, StackedModel
from ryzjax.models.weight_names import layer_name, split_layer
from ryzjax.training.row_chunks import RowChunks

__all__ = ["AdapterParams", "Frozen", "FullModel", "LoraModel", "TrainModel"]

_OUTER = "outer"

AdapterParams = dict[str, dict[str, LoraWeights]]
"""Name of a stack -> path of a layer in its blocks -> the updates of all layers of the stack, each array with a leading
axis of layers. The head's update is at ["outer"]["lm_head"]."""


Details = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Details]]
"""Parameters -> (the scalar that is differentiated, values that are logged beside it)."""


class Frozen(NamedTuple):
    """Arrays that a run reads and never changes.

    Attributes:
      weights: Weights by the names of `StackedModel.weights`. If all weights are trained, these are the weights of the
        start, and only if the objective reads them; otherwise empty.
      row_norms: For DoRA: float32 [L, N], the norm of each row of each adapted weight, named as the adapters are.
    """

    weights: Mapping[str, jax.Array]
    row_norms: Mapping[str, Mapping[str, jax.Array]]


class _FrozenLayer(NamedTuple):
    """The frozen arrays that the scan slices for one adapted block."""

    weights: Mapping[str, jax.Array]
    row_norms: Mapping[str, jax.Array]
    key: jax.Array | None


@dataclass(frozen=True, kw_only=True)
class TrainModel:
    """What training an adapter and training all weights have in common.

    Attributes:
      stacked: The model, with its layers stacked.
      remat: What a layer keeps for the backward pass, see `scan_layers`.
      remat_layers: With remat "full", only the input of every n-th layer is kept.
      mlp_rows: Tokens that pass through an MLP or an attention projection at a time, see `RowChunks`; None for all.
    """

    stacked: StackedModel
    remat: Remat
    remat_layers: int = 1
    mlp_rows: int | None = None

    @property
    def model(self) -> AbstractModel:
        """The model, layer by layer."""
        return self.stacked.model

    def _blocks(self, x: jax.Array, batch: SegmentBatch, trained: Mapping, frozen: Mapping, build: Build) -> jax.Array:
        return self.stacked.blocks(
            x,
            batch,
            trained=trained,
            frozen=frozen,
            build=partial(self._in_chunks, build),
            remat=self.remat,
            remat_layers=self.remat_layers,
        )

    def _in_chunks(self, build: Build, stack: LayerStack, trained: object, frozen: object) -> Block:
        block = build(stack, trained, frozen)
        if self.mlp_rows is not None:
            chunked = [(block.attention, name) for name in "qkvo"]
            chunked += [(block, "mlp")] if isinstance(block.mlp, GatedMLP) else []
            for owner, name in chunked:
                setattr(owner, name, RowChunks(getattr(owner, name), self.mlp_rows))
        return block


@dataclass(frozen=True, kw_only=True)
class LoraModel(TrainModel):
    """A frozen base and the adapter that is trained beside it. The parameters are `AdapterParams` in float32.

    Attributes:
      lora: Ranks, scales and targets of the adapter.
      layers: Names of the adapted layers.
    """

    lora: LoraConfig
    layers: tuple[str, ...]

    def hidden(
        self,
        params: AdapterParams,
        frozen: Frozen,
        batch: SegmentBatch,
        key: jax.Array | None,
    ) -> Float[Array, "T E"]:
        """Returns the hidden states [T, E] before the final norm, for the tokens of all rows.

        Args:
          params: The adapter; empty for the base model alone.
          frozen: The base.
          batch: Packed rows.
          key: Key of dropout; None in evaluation.
        """
        x = self.stacked.decoder(frozen.weights).embed_tokens(batch.token_ids.reshape(-1))
        stacks = self.stacked.stacks
        return self._blocks(
            x,
            batch,
            {stack.name: params.get(stack.name, {}) for stack in stacks},
            {stack.name: self._frozen_layers(stack, frozen, key) for stack in stacks},
            self._build,
        )

    def gradients(self, loss: Loss, params: AdapterParams) -> tuple[AdapterParams, Details]:
        """Returns the gradients of a loss with respect to the parameters, and the loss's details.

        If the model computes in bfloat16, A and B are cast to bfloat16 before they multiply, so their gradients are
        bfloat16 numbers. With remat "full", the gradients of the scanned stacks are returned in bfloat16.
        """
        scanned = {stack.name for stack in self.stacked.scanned} & params.keys() if self.remat == "full" else set()
        dtype = jnp.dtype(self.model.config.dtype)

        def receiver(param: jax.Array) -> jax.Array:
            return jnp.zeros(param.shape, dtype if param.ndim > 2 else param.dtype)

        def received(receivers: AdapterParams, rest: AdapterParams) -> tuple[jax.Array, Details]:
            return loss({**rest, **{name: Received(params[name], receivers[name]) for name in scanned}})

        receivers = {name: jax.tree.map(receiver, params[name]) for name in scanned}
        rest = {name: own for name, own in params.items() if name not in scanned}
        (of_scanned, of_rest), details = jax.grad(received, argnums=(0, 1), has_aux=True)(receivers, rest)
        return {name: (of_scanned if name in scanned else of_rest)[name] for name in params}, details

    def _frozen_layers(self, stack: LayerStack, frozen: Frozen, key: jax.Array | None) -> _FrozenLayer:
        keys = None
        if key is not None and self.lora.dropout:
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(stack.layers))
        return _FrozenLayer(stack.select(frozen.weights), frozen.row_norms.get(stack.name, {}), keys)

    def _build(self, stack: LayerStack, trained: object, frozen: object) -> Block:
        assert isinstance(trained, dict) and isinstance(frozen, _FrozenLayer)
        updates: dict[str, LoraWeights] = trained
        dropout = None
        if frozen.key is not None and updates:
            keys = jax.random.split(frozen.key, len(updates))
            dropout = {path: Dropout(rate=self.lora.dropout, key=key) for path, key in zip(updates, keys, strict=True)}
        block = stack.block(frozen.weights)
        scales = {path: self.lora.scale_of(layer_name(stack.first, path)) for path in updates}
        attach(block, updates, scales, row_norms=frozen.row_norms, dropout=dropout)
        return block

    def head_params(self, params: AdapterParams) -> dict[str, LoraWeights]:
        """Returns the parameters that the head reads."""
        return params.get(_OUTER, {})

    def reference_params(self, frozen: Frozen) -> AdapterParams:
        """Returns the parameters of the model before training. They are empty, because the base is that model."""
        del frozen
        return {}

    def logits(
        self, trained: dict[str, LoraWeights], frozen: Frozen, hidden: Float[Array, "S E"]
    ) -> Float[Array, "S V"]:
        """Returns float32 logits [S, V] of hidden states [S, E]. A `losses.Head`."""
        decoder = self.stacked.decoder(frozen.weights)
        one = {path: jax.tree.map(lambda array: array[0], update) for path, update in trained.items()}
        norms = {path: array[0] for path, array in frozen.row_norms.get(_OUTER, {}).items()}
        attach(decoder, one, {path: self.lora.scale_of(path) for path in one}, row_norms=norms)
        return decoder.logits(hidden)

    def stacks_of_layers(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields (name of a stack, path in its blocks -> the first adapted layer with that path), and the head last."""
        for stack in self.stacked.stacks:
            split = ((*split_layer(name), name) for name in self.layers)
            yield stack.name, {path: name for layer, path, name in split if layer == stack.first}
        yield _OUTER, {name: name for name in self.layers if split_layer(name)[0] is None}

    def shape_of(self, layer: str) -> tuple[int, int, int]:
        """Returns (layers of its stack, N, K) of a layer's weight."""
        n, k = self.model.linears[layer]
        index, _ = split_layer(layer)
        count = next((stack.count for stack in self.stacked.stacks if stack.first == index), 1)
        return count, n, k

    def weight_sharding(self, layer: str) -> jax.sharding.Sharding:
        """Returns the sharding of a layer's weight [N, K]; for a quantized weight, the sharding of its values."""
        weights = self.model.weights
        return (weights.get(f"{layer}.weight") or weights[f"{layer}.weight.values"]).sharding

    def stack_adapter(self, weights: Mapping[str, LoraWeights]) -> AdapterParams:
        """Stacks updates by layer into parameters."""
        params: AdapterParams = {}
        for name, layers in self.stacks_of_layers():
            stack = next((stack for stack in self.stacked.stacks if stack.name == name), None)
            for path in layers:
                names = [path] if stack is None else [layer_name(layer, path) for layer in stack.layers]
                parts = [weights[name] for name in names]
                params.setdefault(name, {})[path] = jax.tree.map(lambda *each: np.stack(each), *parts)
        return params

    def adapter(self, params: AdapterParams, *, base_model: str | None) -> Adapter:
        """Returns the parameters as an adapter with updates by layer, on the host. The inverse of `stack_adapter`."""
        weights: dict[str, LoraWeights] = {}
        host = jax.device_get(params)
        for stack in self.stacked.stacks:
            for path, stacked in host.get(stack.name, {}).items():
                for index, layer in enumerate(stack.layers):
                    weights[layer_name(layer, path)] = jax.tree.map(lambda array, i=index: array[i], stacked)
        for path, stacked in host.get(_OUTER, {}).items():
            weights[path] = jax.tree.map(lambda array: array[0], stacked)
        return Adapter(config=self.lora, weights=weights, base_model=base_model)


@dataclass(frozen=True, kw_only=True)
class FullModel(TrainModel):
    """A model whose weights are all trained.

    The parameters are `StackedModel.weights` by name, as float32 masters. They are cast to the model's dtype one layer
    at a time.
    """

    def hidden(
        self, params: Mapping[str, jax.Array], frozen: Frozen, batch: SegmentBatch, key: jax.Array | None
    ) -> Float[Array, "T E"]:
        """Returns the hidden states [T, E] before the final norm, for the tokens of all rows. `frozen` and `key` are
        unused."""
        del frozen, key
        x = self.stacked.decoder(params).embed_tokens(batch.token_ids.reshape(-1))
        stacks = self.stacked.stacks
        return self._blocks(x, batch, {stack.name: stack.select(params) for stack in stacks}, {}, _plain_block)

    def gradients(self, loss: Loss, params: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Details]:
        """Returns the gradients of a loss with respect to the parameters, and the loss's details."""
        return jax.grad(loss, has_aux=True)(params)

    def head_params(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the parameters that the head reads: the weights outside the layers."""
        return {name: params[name] for name in self.stacked.outer}

    def reference_params(self, frozen: Frozen) -> Mapping[str, jax.Array]:
        """Returns the weights of the model before training, which `Frozen` holds if the objective reads them."""
        return frozen.weights

    def logits(self, trained: dict[str, jax.Array], frozen: Frozen, hidden: Float[Array, "S E"]) -> Float[Array, "S V"]:
        """Returns float32 logits [S, V] of hidden states [S, E]. A `losses.Head`."""
        del frozen
        return self.stacked.decoder(trained).logits(hidden)


def _plain_block(stack: LayerStack, trained: object, frozen: object) -> Block:
    del frozen
    assert isinstance(trained, dict)
    return stack.block(trained)
