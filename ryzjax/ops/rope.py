"""Rotary position embedding (Su et al., arXiv 2104.09864). It rotates halves of a head, as transformers does."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ryzjax.dims import Float32Array
from ryzjax.ops.dispatch import reference_only

__all__ = ["apply_rope", "rope_cos_sin"]


def rope_cos_sin(
    positions: Int[Array, " T"], inv_freq: Float32Array | Float[Array, "T half"], magnitude: float
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """Returns cos and sin of position times inverse frequency in float32, once a step for all layers.

    Args:
      positions: the position of each token.
      inv_freq: the inverse frequencies, the same for all tokens or different for each.
      magnitude: a factor of both results: the attention factor of YaRN and LongRoPE, otherwise 1.
    """
    angles = positions.astype(jnp.float32)[:, None] * inv_freq
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


@reference_only("rope")
def apply_rope(
    x: Float[Array, "T N D"], cos: Float[Array, "T half"], sin: Float[Array, "T half"]
) -> Float[Array, "T N D"]:
    """Rotates the pairs (x[i], x[i + half]) of each head by the angle of its position, computed in float32.

    The first 2 * half features of a head are rotated. The others (partial rotary) stay as they are.
    """
    half = cos.shape[-1]
    rotated = x[..., : 2 * half].astype(jnp.float32)
    first, second = jnp.split(rotated, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    parts = [(first * cos - second * sin).astype(x.dtype), (second * cos + first * sin).astype(x.dtype)]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :])
    return jnp.concatenate(parts, axis=-1)
