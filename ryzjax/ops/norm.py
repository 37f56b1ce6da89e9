"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["rms_norm"]


def rms_norm(x: Float[Array, "... E"], weight: Float[Array, " E"], eps: float) -> Float[Array, "... E"]:
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in float32, returned in x's dtype.

    The normalised value is rounded to x's dtype before the weight multiplies it, as transformers does.
    """
    f32 = x.astype(jnp.float32)
    normed = f32 * lax.rsqrt(jnp.mean(f32 * f32, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * normed.astype(x.dtype)
