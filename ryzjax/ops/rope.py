"""Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated as in transformers."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ryzjax.dims import Float32Array

__all__ = ["apply_rope", "llama3_inv_freq", "plain_inv_freq", "rope_cos_sin"]


def plain_inv_freq(head_dim: int, theta: float) -> Float32Array:
    """Inverse frequencies theta^(-2i/d), shape [head_dim / 2]."""
    return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)


def llama3_inv_freq(
    inv_freq: Float32Array,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: int,
) -> Float32Array:
    """Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, those between blended.

    Source: the formula of transformers' `_compute_llama3_parameters` (Llama 3.1 reference).
    """
    wavelength = 2 * math.pi / inv_freq
    low_wavelength = original_max_position / low_freq_factor
    high_wavelength = original_max_position / high_freq_factor
    smooth = (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = np.where(wavelength > low_wavelength, inv_freq / factor, inv_freq)
    between = (wavelength <= low_wavelength) & (wavelength >= high_wavelength)
    return np.where(between, blended, scaled).astype(np.float32)


def rope_cos_sin(
    positions: Int[Array, " T"], inv_freq: Float32Array
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """cos and sin of position times inverse frequency, float32; computed once a step for all layers."""
    angles = positions.astype(jnp.float32)[:, None] * inv_freq
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "T N D"], cos: Float[Array, "T half"], sin: Float[Array, "T half"]
) -> Float[Array, "T N D"]:
    """Rotates the pairs (x[i], x[i + D/2]) of each head by its position's angle; float32 inside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
