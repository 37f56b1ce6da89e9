"""Linear: y = x W^T + b, with W an array or quantized."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.weight import Weight
from ryzjax.ops.linear.project import native_refusal_of, project
from ryzjax.ops.linear.quantized import permute_columns
from ryzjax.ops.linear.reference import linear
from ryzjax.qarray import QArray, QFormat
from ryzjax.sharding import Placement

__all__ = ["Linear", "LinearLike", "linears", "multiply"]


class LinearLike(nnx.Module):
    """What `linears` can take together with others: matrices that its input is multiplied with, and what becomes of it.

    Attributes:
      placement: where the matrices live.
    """

    placement: Placement

    @abstractmethod
    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """The matrices [out, in], all with the logical axis of `in`."""

    @abstractmethod
    def finish(self, products: Sequence[jax.Array]) -> jax.Array:
        """float32 products [T, out] with each of `matrices` -> the layer's float32 [T, out]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, in] -> float32 [T, out]."""
        return linears(x, (self,))[0]


class Linear(LinearLike):
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

    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """The weight."""
        return (self.weight,)

    def finish(self, products: Sequence[jax.Array]) -> jax.Array:
        """Adds the bias."""
        (y,) = products
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def linears(x: jax.Array, layers: Sequence[LinearLike]) -> tuple[jax.Array, ...]:
    """Several layers of one input, [T, in] -> float32 [T, out] each: one call where a kernel takes them together."""
    if not all(isinstance(layer, LinearLike) for layer in layers):
        return tuple(layer(x) for layer in layers)  # what stands in a layer's place has its own way of calling it
    matrices = [layer.matrices() for layer in layers]
    products = iter(multiply(x, list(chain.from_iterable(matrices)), layers[0].placement))
    return tuple(layer.finish(list(islice(products, len(own)))) for layer, own in zip(layers, matrices, strict=True))


def multiply(x: jax.Array, weights: Sequence[Weight | QuantizedWeight], placement: Placement) -> tuple[jax.Array, ...]:
    """x W^T for weights [out, in] that share the logical axis of `in`: [T, in] -> float32 [T, out] each.

    Over several devices each multiplies with its own shard wherever a kernel of ours may run: the partitioner would
    gather a whole matrix for a call that it cannot look into. XLA's own products of plain weights are left to it.
    """
    out: dict[int, jax.Array] = {}
    matrices: dict[int, _Matrix] = {}
    for i, weight in enumerate(weights):
        if isinstance(weight, Weight) and _is_left_to_partitioner(x, weight, placement):
            out[i] = linear(x, weight[...])
            continue
        matrix = _matrix(weight, placement)
        if isinstance(matrix.array, QArray) and matrix.array.order is not None:
            permuted = permute_columns(x, matrix.array.order)
            (out[i],) = _each_on_its_device(permuted, [_without_order(matrix)], placement)
        else:
            matrices[i] = matrix
    if matrices:
        products = _each_on_its_device(x, list(matrices.values()), placement)
        out.update(zip(matrices, products, strict=True))
    return tuple(out[i] for i in range(len(weights)))


class _Matrix(NamedTuple):
    """A weight as `project` takes it: logical axes (out, in) and their indivisible runs, and how it is split."""

    array: jax.Array | QArray
    specs: PartitionSpec | QArray
    axes: tuple[str | None, str | None]
    units: tuple[int, int]


def _is_left_to_partitioner(x: jax.Array, weight: Weight, placement: Placement) -> bool:
    if placement.num_devices == 1:
        return False
    return placement.platform != "cpu" or native_refusal_of(x, weight[...]) is not None


def _matrix(weight: Weight | QuantizedWeight, placement: Placement) -> _Matrix:
    """Whole along "embed": what a layout splits there (fsdp) is gathered for the product."""
    if isinstance(weight, QuantizedWeight):
        array, specs = weight.array(), weight.specs(placement, whole=("embed",))
        if array.format.scale_dtype == "nested":
            array, specs = _flat_scales(array, specs)
        axes, units = weight.axes, (weight.row_unit, weight.column_unit)
    else:
        metadata = weight.get_metadata()
        array, axes, units = weight[...], metadata["axes"], metadata["units"]
        specs = placement.spec(_split_axes(axes), weight.shape, units)
    return _Matrix(array, specs, _split_axes(axes), units)


def _split_axes(axes: tuple[str | None, ...]) -> tuple[str | None, str | None]:
    row, column = (None if axis == "embed" else axis for axis in axes)
    return row, column


def _without_order(matrix: _Matrix) -> _Matrix:
    array, specs = matrix.array, matrix.specs
    assert isinstance(array, QArray) and isinstance(specs, QArray)
    return matrix._replace(array=replace(array, order=None), specs=replace(specs, order=None))


def _each_on_its_device(x: jax.Array, matrices: Sequence[_Matrix], placement: Placement) -> tuple[jax.Array, ...]:
    in_axis = matrices[0].axes[1]
    unit = math.lcm(*(matrix.units[1] for matrix in matrices))
    summed_over = placement.mesh_axes(in_axis, x.shape[1] // unit) if in_axis else ()

    def products(x: jax.Array, arrays: list[jax.Array | QArray]) -> tuple[jax.Array, ...]:
        return project(x, arrays, summed_over=summed_over)

    local = placement.per_shard(
        products,
        in_specs=(
            placement.spec(("tokens", in_axis), x.shape, (1, unit)),
            [matrix.specs for matrix in matrices],
        ),
        out_specs=tuple(
            placement.spec(("tokens", m.axes[0]), (x.shape[0], m.array.shape[0]), (1, m.units[0])) for m in matrices
        ),
    )
    return local(x, [matrix.array for matrix in matrices])


def _flat_scales(array: QArray, specs: QArray) -> tuple[QArray, QArray]:
    """With scales of the second level multiplied out: their runs cross rows, hence devices."""
    flat = replace(array.format, scale_dtype="float32")

    def without(q: QArray, scales: jax.Array) -> QArray:
        return replace(q, format=flat, scales=scales, scale_codes=None, scale_blocks=None, scale_offset=None)

    return without(array, array.row_scales()), without(specs, specs.scales)
