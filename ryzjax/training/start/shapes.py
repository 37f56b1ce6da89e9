"""Shapes and shardings of what a run trains, and the placement of an adapter on the devices."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ryzjax.lora.adapter import LoraWeights
from ryzjax.models.stacked import StackedModel
from ryzjax.training.model import AdapterParams, LoraModel

__all__ = ["adapter_shapes", "master_shapes", "place_adapter"]


def master_shapes(stacked: StackedModel) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> float32 shape and sharding of every weight, for a run that trains them all."""
    return {
        name: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=spec.sharding)
        for name, spec in stacked.weights.items()
    }


def adapter_shapes(model: LoraModel) -> AdapterParams:
    """Returns the parameters of an adapter as shapes with shardings."""
    shapes: AdapterParams = {}
    for name, layers in model.stacks_of_layers():
        for path, layer in layers.items():
            count, n, k = model.shape_of(layer)
            rank = model.lora.rank_of(layer)
            a, b, magnitude = model.model.placement.low_rank(model.weight_sharding(layer))

            def shape(*size: int, sharding: jax.sharding.Sharding) -> jax.Array:
                return jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding)  # pyright: ignore

            shapes.setdefault(name, {})[path] = LoraWeights(
                a=shape(count, rank, k, sharding=a),
                b=shape(count, n, rank, sharding=b),
                magnitude=shape(count, n, sharding=magnitude) if model.lora.use_dora else None,
            )
    return shapes


def place_adapter(model: LoraModel, weights: Mapping[str, LoraWeights]) -> AdapterParams:
    """Stacks updates by layer, on the host, and places them on the devices."""
    shardings = jax.tree.map(lambda shape: shape.sharding, adapter_shapes(model))
    return jax.device_put(model.stack_adapter(weights), shardings)
