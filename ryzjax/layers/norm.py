"""RMSNorm with a learned scale."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.weight import Weight
from ryzjax.ops.norm import rms_norm

__all__ = ["RMSNorm"]


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, size: int, *, eps: float, dtype: DTypeLike):
        self.weight = Weight((size,), dtype, (None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> the same shape and dtype."""
        return rms_norm(x, self.weight[...], self.eps)
