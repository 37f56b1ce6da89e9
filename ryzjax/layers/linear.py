"""Linear layers: y = x W^T + b, with W an array or quantized."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.weight import Weight
from ryzjax.ops.linear import project as ops
from ryzjax.qarray import QArray, QFormat
from ryzjax.sharding import Placement

__all__ = ["Linear", "LinearLike", "project", "project_weights"]


class LinearLike(nnx.Module):
    """A layer whose matrices can be multiplied together with those of other layers with the same input.

    Attributes:
      placement: the devices that hold the matrices.
    """

    placement: Placement

    @abstractmethod
    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """Returns the matrices [out, in]. Their `in` has the same logical axis."""

    @abstractmethod
    def finish(self, products: Sequence[Float[Array, "T _"]]) -> Float[Array, "T N"]:
        """Turns the float32 product with each of `matrices` into the float32 output of the layer."""

    def __call__(self, x: Float[Array, "T K"]) -> Float[Array, "T N"]:
        """Returns the float32 output of the layer."""
        return project(x, (self,))[0]


class Linear(LinearLike):
    """A linear layer with a weight [out, in].

    Args:
      in_size, out_size: the numbers of in and out features.
      in_axis, out_axis: their logical axes; None for a size that is never split.
      dtype: the dtype of weight and bias.
      placement: the devices that hold the weight.
      bias: whether the layer has a bias.
      in_unit, out_unit: the indivisible runs along the sizes, such as head_dim for fused heads.
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
        self.weight: Weight | QuantizedWeight = Weight(
            (out_size, in_size), dtype, (out_axis, in_axis), (out_unit, in_unit)
        )
        self.bias = Weight((out_size,), dtype, (out_axis,), (out_unit,)) if bias else None

    def quantize(self, name: str, format: QFormat) -> None:
        """Replaces the weight by an empty quantized one. `name` is the name of the layer in error messages."""
        assert isinstance(self.weight, Weight), f"{name} is quantized already"
        metadata = self.weight.get_metadata()
        self.weight = QuantizedWeight(
            name, format, self.weight.shape, metadata["axes"], metadata["units"], self.placement
        )

    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """Returns the weight."""
        return (self.weight,)

    def finish(self, products: Sequence[Float[Array, "T _"]]) -> Float[Array, "T N"]:
        """Adds the bias."""
        (y,) = products
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def project(x: Float[Array, "T K"], layers: Sequence[LinearLike]) -> tuple[Float[Array, "T _"], ...]:
    """Runs several layers on the same input. A kernel multiplies their weights in one call if it supports them.

    Returns:
      The float32 output of each layer.
    """
    if not all(isinstance(layer, LinearLike) for layer in layers):
        return tuple(layer(x) for layer in layers)  # A replacement that is no LinearLike can only be called.
    weights = [layer.matrices() for layer in layers]
    products = iter(project_weights(x, list(chain.from_iterable(weights)), layers[0].placement))
    return tuple(layer.finish(list(islice(products, len(own)))) for layer, own in zip(layers, weights, strict=True))


def project_weights(
    x: Float[Array, "T K"], weights: Sequence[Weight | QuantizedWeight], placement: Placement
) -> tuple[Float[Array, "T _"], ...]:
    """Returns `x @ weight.T` in float32 for weights [out, in] that share the logical axis of `in`."""
    return ops.project(x, [_matrix(weight, placement) for weight in weights], placement)


def _matrix(weight: Weight | QuantizedWeight, placement: Placement) -> ops.Matrix:
    """Returns a weight for the op. An axis "embed" that a layout splits (fsdp) is gathered for the product."""
    if isinstance(weight, QuantizedWeight):
        array, specs = weight.array(), weight.specs(placement, whole=("embed",))
        if array.format.scale_dtype == "nested" and placement.num_devices > 1:
            array, specs = _flat_scales(array, specs)
        axes, units = weight.axes, (weight.row_unit, weight.column_unit)
    else:
        metadata = weight.get_metadata()
        array, axes, units = weight[...], metadata["axes"], metadata["units"]
        specs = placement.spec(_split_axes(axes), weight.shape, units)
    return ops.Matrix(array, specs, _split_axes(axes), units)


def _split_axes(axes: tuple[str | None, ...]) -> tuple[str | None, str | None]:
    row, column = (None if axis == "embed" else axis for axis in axes)
    return row, column


def _flat_scales(array: QArray, specs: QArray) -> tuple[QArray, QArray]:
    """Multiplies nested scales out, because their runs cross rows and therefore devices."""
    flat = replace(array.format, scale_dtype="float32")

    def without(q: QArray, scales: jax.Array) -> QArray:
        return replace(q, format=flat, scales=scales, scale_codes=None, scale_blocks=None, scale_offset=None)

    return without(array, array.row_scales()), without(specs, specs.scales)
