"""Linear: y = x W^T + b, with W an array or quantized."""

from __future__ import annotations

from dataclasses import replace

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.weight import Weight
from ryzjax.ops.linear import linear
from ryzjax.ops.quantized_linear import quantized_linear
from ryzjax.qarray import QArray, QFormat
from ryzjax.sharding import Placement

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
        placement: Placement,
        bias: bool = False,
        in_unit: int = 1,
        out_unit: int = 1,
    ):
        self.placement = placement
        self.in_axis, self.out_axis = in_axis, out_axis
        self.weight: Weight | QuantizedWeight = Weight(
            (out_size, in_size), dtype, (out_axis, in_axis), (out_unit, in_unit)
        )
        self.bias = Weight((out_size,), dtype, (out_axis,), (out_unit,)) if bias else None

    def quantize(self, name: str, format: QFormat) -> None:
        """Replaces the weight by an empty quantized one; `name` is for messages."""
        assert isinstance(self.weight, Weight), f"{name} is quantized already"
        metadata = self.weight.get_metadata()
        self.weight = QuantizedWeight(
            name, format, self.weight.shape, metadata["axes"], metadata["units"], self.placement
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, in] -> float32 [T, out]."""
        bias = None if self.bias is None else self.bias[...]
        if isinstance(self.weight, Weight):
            return linear(x, self.weight[...], bias)
        return self._quantized(x, self.weight, bias)

    def _quantized(self, x: jax.Array, weight: QuantizedWeight, bias: jax.Array | None) -> jax.Array:
        """Each device multiplies with its own shard; the loop over panels must not be left to the partitioner."""
        placement = self.placement
        array = weight.array()
        specs = weight.specs(placement, whole=("embed",))
        if array.order is not None:
            x = x[:, array.order]
            array, specs = replace(array, order=None), replace(specs, order=None)
        if array.format.scale_dtype == "nested":
            array, specs = _flat_scales(array, specs)
        k, n = x.shape[1], array.shape[0]
        in_axis, out_axis = (None if axis == "embed" else axis for axis in (self.in_axis, self.out_axis))
        summed_over = placement.mesh_axes(in_axis, k // weight.column_unit) if in_axis else ()

        def multiply(x: jax.Array, array: QArray) -> jax.Array:
            return quantized_linear(x, array, summed_over=summed_over)

        local = placement.per_shard(
            multiply,
            in_specs=(placement.spec(("tokens", in_axis), x.shape, (1, weight.column_unit)), specs),
            out_specs=placement.spec(("tokens", out_axis), (x.shape[0], n), (1, weight.row_unit)),
        )
        out = local(x, array)
        return out if bias is None else out + bias.astype(out.dtype)


def _flat_scales(array: QArray, specs: QArray) -> tuple[QArray, QArray]:
    """With scales of the second level multiplied out: their runs cross rows, hence devices."""
    flat = replace(array.format, scale_dtype="float32")

    def without(q: QArray, scales: jax.Array) -> QArray:
        return replace(q, format=flat, scales=scales, scale_codes=None, scale_blocks=None, scale_offset=None)

    return without(array, array.row_scales()), without(specs, specs.scales)
