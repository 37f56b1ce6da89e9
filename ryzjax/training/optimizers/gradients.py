"""The global norm of gradients: for the log, for clipping, and to check that they are finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

__all__ = ["clip_by_global_norm", "global_norm"]


def global_norm(gradients: object) -> Float[Array, ""]:
    """Returns the L2 norm over all leaves, a float32 scalar.

    It is NaN or infinite if a gradient is, or if the sum of squares overflows. The train step logs it, and checks it
    with `jnp.isfinite` before it applies an update.
    """
    squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradients)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients down together if their global norm is above `max_norm` (Pascanu et al., 1211.5063).

    The norm is `global_norm`. In a step that logs it too, XLA computes it once.
    """

    def clip(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        norm = global_norm(updates)
        scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates)

    return optax.stateless(clip)
