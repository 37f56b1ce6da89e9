"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["rms_norm"]


def rms_norm(
    x: Float[Array, "... E"], weight: Float[Array, " E"], eps: float, *, offset: float
) -> Float[Array, "... E"]:
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)`, computed in float32 and rounded once, to x's dtype.

    Args:
      offset: 1.0 for Gemma, whose weights are stored as their distance from one; else 0.0.
    """
    f32 = x.astype(jnp.float32)
    normed = f32 * lax.rsqrt(jnp.mean(f32 * f32, axis=-1, keepdims=True) + eps)
    return (normed * (offset + weight.astype(jnp.float32))).astype(x.dtype)
