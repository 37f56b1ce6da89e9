"""RMSNorm with a learned scale."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.weight import Weight
from ryzjax.ops.norm import rms_norm, rms_norm_by_xla
from ryzjax.sharding import Placement

__all__ = ["RMSNorm"]


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + weight) over the last dimension.

    Args:
      size: of that dimension.
      offset: 1.0 for Gemma, whose weights are stored as their distance from one.
      axis, unit: logical axis of that dimension and its indivisible run, where it is split over devices.
    """

    def __init__(
        self,
        size: int,
        *,
        eps: float,
        dtype: DTypeLike,
        placement: Placement,
        offset: float = 0.0,
        axis: str | None = None,
        unit: int = 1,
    ):
        self.placement = placement
        self.weight = Weight((size,), dtype, (axis,), (unit,))
        self.eps = eps
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> the same shape and dtype."""
        # Over several devices XLA splits it; a call it cannot look into would be repeated on each.
        norm = rms_norm if self.placement.num_devices == 1 else rms_norm_by_xla
        return norm(x, self.weight[...], self.eps, offset=self.offset)
