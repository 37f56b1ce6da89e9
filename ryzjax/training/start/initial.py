"""What training begins with: fresh weights of a model, fresh updates of an adapter, and where they lie."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ryzjax.lora.adapter import LoraWeights
from ryzjax.models.stacked import StackedModel
from ryzjax.training.model import AdapterParams, LoraModel

__all__ = ["adapter_shapes", "fresh_weights", "master_shapes", "place_adapter"]

_DEVIATION = 0.02


def master_shapes(stacked: StackedModel) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> float32 shape and sharding of every weight, for a run that trains them all."""
    return {
        name: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=spec.sharding)
        for name, spec in stacked.weights.items()
    }


def fresh_weights(stacked: StackedModel, seed: int) -> dict[str, jax.Array]:
    """float32 weights to train from scratch: normal with deviation 0.02, norms 1, biases 0.

    What a block adds to the residual stream (o and down) is drawn smaller by sqrt(2 * layers), as in GPT-2.

    Args:
      seed: of the draw. A weight depends on it and on its name, not on how it is sharded.
    """
    model = stacked.model
    offset = model.merge(tuple(jax.tree.leaves(model.state))).norm_offset
    residual = _DEVIATION / math.sqrt(2 * model.config.num_layers)
    key = jax.random.PRNGKey(seed)
    weights: dict[str, jax.Array] = {}
    for name, shape in master_shapes(stacked).items():
        module, _, leaf = name.rpartition(".")

        def draw(
            key: jax.Array, module: str = module, leaf: str = leaf, shape: tuple[int, ...] = shape.shape
        ) -> jax.Array:
            if leaf == "bias":
                return jnp.zeros(shape, jnp.float32)
            if module.endswith("norm"):
                return jnp.full(shape, 1.0 - offset, jnp.float32)
            deviation = residual if module.endswith(("attention.o", "mlp.down")) else _DEVIATION
            return deviation * jax.random.normal(key, shape, jnp.float32)

        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        weights[name] = jax.jit(draw, out_shardings=shape.sharding)(own)
    return weights


def adapter_shapes(model: LoraModel) -> AdapterParams:
    """The parameters of an adapter, as shapes with shardings."""
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
    """Updates by layer, on the host -> parameters on the devices."""
    shardings = jax.tree.map(lambda shape: shape.sharding, adapter_shapes(model))
    return jax.device_put(model.stack_adapter(weights), shardings)
