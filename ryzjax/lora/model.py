"""AdaptedModel: an abstract model with an adapter in it, whose leaves are the base's and then the adapter's."""

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
    """A model that runs with one adapter, wherever an AbstractModel does.

    Attributes:
      scales: layer -> its update's scale.
    """

    scales: Mapping[str, float]

    def merge(self, leaves: tuple[jax.Array, ...]) -> Decoder:
        """The model over `leaves`, its adapted layers with their updates beside them."""
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
    """A model and its weights with an adapter beside them; the base's arrays are shared, not copied.

    Args:
      model, leaves: of the base; its linear layers may be quantized.
      name: of the adapter, for messages.

    Raises:
      ConfigError: the adapter does not fit the model.
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
    """A linear layer's matrix [N, K] among a model's weights by name."""
    format = model.quantization.get(layer)
    if format is None:
        return weights[f"{layer}.weight"]
    leaves = {leaf: weights[name] for leaf in LEAVES if (name := f"{layer}.weight.{leaf}") in weights}
    return QArray(format=format, **leaves)
