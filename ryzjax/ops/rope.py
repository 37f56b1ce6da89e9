"""Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated as in transformers."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ryzjax.dims import Float32Array

__all__ = ["apply_rope", "rope_cos_sin"]


def rope_cos_sin(
    positions: Int[Array, " T"], inv_freq: Float32Array | Float[Array, "T half"], magnitude: float
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """cos and sin of position times inverse frequency, float32; computed once a step for all layers.

    Args:
      inv_freq: [half] for all tokens, or [T, half] where each token has its own.
      magnitude: multiplies both: YaRN's and LongRoPE's attention factor, else 1.
    """
    angles = positions.astype(jnp.float32)[:, None] * inv_freq
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def apply_rope(
    x: Float[Array, "T N D"], cos: Float[Array, "T half"], sin: Float[Array, "T half"]
) -> Float[Array, "T N D"]:
    """Rotates the pairs (x[i], x[i + half]) of each head by its position's angle; float32 inside.

    The first 2 * half features of a head are rotated, the rest (partial rotary) pass through.
    """
    half = cos.shape[-1]
    rotated = x[..., : 2 * half].astype(jnp.float32)
    first, second = jnp.split(rotated, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    parts = [(first * cos - second * sin).astype(x.dtype), (second * cos + first * sin).astype(x.dtype)]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :])
    return jnp.concatenate(parts, axis=-1)
