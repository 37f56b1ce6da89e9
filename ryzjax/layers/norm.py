"""RMSNorm with a learned scale."""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.layers.weight import Weight
from ryzjax.ops.norm import rms_norm
from ryzjax.sharding import Placement

__all__ = ["RMSNorm"]


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + weight) over the last dimension.

    Args:
      size: the size of the last dimension.
      eps: added to the mean square.
      dtype: the dtype of the weight.
      placement: the devices that hold the weight.
      offset: 1.0 for Gemma, whose weights are stored as their difference from one, otherwise 0.0.
      axis, unit: the logical axis of the last dimension and its indivisible run, if it is split over devices.
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

    def __call__(self, x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
        """Returns the normalized activations in the dtype of `x`."""
        return rms_norm(x, self.weight[...], eps=self.eps, offset=self.offset, placement=self.placement)
