"""Linear: y = x W^T + b."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.weight import Weight
from ryzjax.ops.linear import linear

__all__ = ["Linear"]


class Linear(nnx.Module):
    """A linear layer with weight [out, in].

    Args:
      in_axis, out_axis: logical axes of the two sizes; None where a size is never split.
      in_unit, out_unit: indivisible runs along them (head_dim for fused heads).
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        in_axis: str | None,
        out_axis: str | None,
        dtype: DTypeLike,
        bias: bool = False,
        in_unit: int = 1,
        out_unit: int = 1,
    ):
        self.weight = Weight((out_size, in_size), dtype, (out_axis, in_axis), (out_unit, in_unit))
        self.bias = Weight((out_size,), dtype, (out_axis,), (out_unit,)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, in] -> float32 [T, out]."""
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])
