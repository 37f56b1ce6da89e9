"""Random float32 weights for a model that is trained from scratch."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp

from ryzjax.models.stacked import StackedModel
from ryzjax.training.start.shapes import master_shapes

__all__ = ["random_weights"]

_DEVIATION = 0.02


def random_weights(stacked: StackedModel, seed: int) -> dict[str, jax.Array]:
    """Draws float32 weights: normal with standard deviation 0.02, norms 1, biases 0.

    The matrices whose product is added to the residual stream (`attention.o` and `mlp.down`) have a standard deviation
    smaller by sqrt(2 * layers), as in GPT-2.

    Args:
      stacked: The model.
      seed: Seed of the draw. A weight depends on the seed and its name, not on its sharding.

    Returns:
      Name of a stacked weight -> array, in the sharding of `master_shapes`.
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
