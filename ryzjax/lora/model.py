"""AdaptedModel: an abstract model with one adapter. Its leaves are those of the base, then those of the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.lora.adapter import Adapter, LoraWeights, check_adapter
from ryzjax.lora.linear import attach
from ryzjax.lora.norms import row_norms
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.decoder import Decoder
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.qarray import LEAVES, QArray

__all__ = ["AdaptedModel", "adapted", "weight_of"]


@dataclass(frozen=True, kw_only=True)
class AdaptedModel(AbstractModel):
    """A model with one adapter, which can be used wherever an AbstractModel can.

    Attributes:
      scales: Layer name -> factor of its update.
    """

    scales: Mapping[str, float]

    def merge(self, leaves: tuple[jax.Array, ...]) -> Decoder:
        """Returns the model over `leaves`, with its adapted layers."""
        base = len(jax.tree.leaves(self.state))
        decoder = super().merge(leaves[:base])
        extra = dict(zip(list(self.weights)[base:], leaves[base:], strict=True))
        updates = {
            layer: LoraWeights(
                a=extra[f"{layer}.lora.a"], b=extra[f"{layer}.lora.b"], magnitude=extra.get(f"{layer}.lora.magnitude")
            )
            for layer in self.scales
        }
        norms = {layer: extra[name] for layer in self.scales if (name := f"{layer}.lora.row_norms") in extra}
        attach(decoder, updates, self.scales, row_norms=norms)
        return decoder


def adapted(
    model: AbstractModel, leaves: tuple[jax.Array, ...], adapter: Adapter, *, name: str
) -> tuple[AdaptedModel, tuple[jax.Array, ...]]:
    """Adds an adapter to a model and its weights. The base's arrays are shared, not copied.

    Args:
      model: The abstract base model. Its linear layers may be quantized.
      leaves: The weights of the base, in the order of `model.weights`.
      adapter: The adapter.
      name: The name of the adapter in error messages.

    Returns:
      The adapted model and its leaves.

    Raises:
      ConfigError: The adapter does not fit the model.
    """
    check_adapter(adapter, model.linears, name=name)
    base = dict(zip(model.weights, leaves, strict=True))
    found: dict[str, jax.Array | np.ndarray] = {}
    for layer, update in adapter.weights.items():
        found[f"{layer}.lora.a"], found[f"{layer}.lora.b"] = update.a, update.b
        if update.magnitude is not None:
            found[f"{layer}.lora.magnitude"] = update.magnitude
            found[f"{layer}.lora.row_norms"] = row_norms(weight_of(model, base, layer))
    everywhere = model.placement.replicated
    extra = {path: jax.device_put(jnp.asarray(array, jnp.float32), everywhere) for path, array in found.items()}
    specs = {
        path: WeightSpec(shape=array.shape, dtype=array.dtype, stored_dtype=array.dtype, sharding=everywhere)
        for path, array in extra.items()
    }
    model = AdaptedModel(
        config=model.config,
        placement=model.placement,
        graphdef=model.graphdef,
        weights=model.weights | specs,
        state=model.state,
        ropes=model.ropes,
        linears=model.linears,
        quantization=model.quantization,
        scales={layer: adapter.config.scale_of(layer) for layer in adapter.weights},
    )
    return model, (*leaves, *extra.values())


def weight_of(model: AbstractModel, weights: Mapping[str, jax.Array], layer: str) -> jax.Array | QArray:
    """Returns the matrix [N, K] of a linear layer, given a model's weights by name."""
    format = model.quantization.get(layer)
    if format is None:
        return weights[f"{layer}.weight"]
    leaves = {leaf: weights[name] for leaf in LEAVES if (name := f"{layer}.weight.{leaf}") in weights}
    return QArray(format=format, **leaves)
