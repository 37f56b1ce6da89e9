"""linear: y = x W^T + b, the one matmul of the model."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["linear"]


def linear(
    x: Float[Array, "T K"], weight: Float[Array, "N K"], bias: Float[Array, " N"] | None = None
) -> Float[Array, "T N"]:
    """`x @ weight.T + bias`, accumulated and returned in float32.

    Args:
      x: activations; cast to the weight's dtype before the product.
      weight: [out, in], the layout XLA on CPU multiplies fastest and checkpoints store.
      bias: added in float32.

    Returns:
      float32; the caller decides when to round to the model's dtype.
    """
    rows = x.shape[0]
    x = x.astype(weight.dtype)
    if rows == 1:
        # XLA on CPU has no fast path for a single row (4096 x 11008: 58 ms against 4 for two rows).
        x = jnp.concatenate([x, jnp.zeros_like(x)])
    out = lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)[:rows]
    return out if bias is None else out + bias.astype(jnp.float32)
