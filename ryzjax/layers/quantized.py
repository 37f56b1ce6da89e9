"""QuantizedWeight: a quantized matrix [..., N, K], held as the leaves of a QArray and sharded as the matrix is."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from ryzjax.errors import ConfigError, LayoutError
from ryzjax.layers.weight import Weight
from ryzjax.qarray import LEAVES, QArray, QFormat
from ryzjax.sharding import Placement

__all__ = ["QuantizedWeight"]


class QuantizedWeight(nnx.Module):
    """A QArray [..., N, K] with one parameter for each leaf.

    Args:
      name: the name of the weight in error messages.
      format: the format of the QArray.
      shape, axes, units: the shape, logical axes and indivisible runs of the matrix, as in `Weight`.
      placement: the devices. Each shard holds whole groups.

    Raises:
      LayoutError: the layout splits a group of columns or a block of rows.
      ConfigError: the format does not fit the shape.
    """

    def __init__(
        self,
        name: str,
        format: QFormat,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        units: tuple[int, ...],
        placement: Placement,
    ):
        self.format = format
        self.axes = axes
        *lead, n, k = shape
        row_block = format.rows or 1
        self.row_unit = math.lcm(units[-2], row_block)
        self.column_unit = math.lcm(units[-1], format.column_unit)
        _check_split(name, placement, axes[-2], n, units[-2], self.row_unit, format)
        _check_split(name, placement, axes[-1], k, units[-1], self.column_unit, format)
        outer_axes, outer_units = axes[: len(lead)], units[: len(lead)]
        # A scale that all rows or all columns share is the same on every device.
        scale_axes = (
            *outer_axes,
            None if format.rows is None else axes[-2],
            None if format.group is None else axes[-1],
        )
        scale_units = (*outer_units, self.row_unit // row_block, self.column_unit // (format.group or 1))
        value_units = (*outer_units, self.row_unit, self.column_unit // (2 if format.pack else 1))

        def leaf(name: str, leaf_shape: tuple[int, ...], dtype: DTypeLike) -> Weight:
            if name == "values":
                return Weight(leaf_shape, dtype, axes, value_units)
            if name in ("scales", "zeros"):
                # bfloat16 scales are stored as their bits, because products slice the scales of a panel out of them.
                is_bits = name == "scales" and format.scale_dtype == "bfloat16"
                return Weight(leaf_shape, "bfloat16" if is_bits else dtype, scale_axes, scale_units, as_bits=is_bits)
            leaf_axes = (*outer_axes, None) if name == "order" else (None,) * len(leaf_shape)
            return Weight(leaf_shape, dtype, leaf_axes)

        try:
            shapes = format.leaf_shapes(shape)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}; quantize it with another group size, or keep its dtype") from error
        for part in LEAVES:
            setattr(self, part, leaf(part, *shapes[part]) if part in shapes else None)

    def leaves(self) -> dict[str, Weight]:
        """Returns the parameters by their name in a QArray. Leaves that the format does not have are left out."""
        return {name: weight for name in LEAVES if (weight := getattr(self, name)) is not None}

    def array(self) -> QArray:
        """Returns the leaves as one QArray."""
        return QArray(format=self.format, **{name: weight[...] for name, weight in self.leaves().items()})

    def specs(self, placement: Placement, whole: tuple[str, ...]) -> QArray:
        """Returns the PartitionSpec of each leaf, for `shard_map`.

        Args:
          placement: the devices.
          whole: the logical axes that are gathered on entry, so that each device sees all of the matrix along them.
        """

        def spec(weight: Weight) -> PartitionSpec:
            metadata = weight.get_metadata()
            axes = tuple(None if axis in whole else axis for axis in metadata["axes"])
            return placement.spec(axes, weight.shape, metadata["units"])

        specs: dict[str, jax.Array] = {name: spec(weight) for name, weight in self.leaves().items()}  # pyright: ignore
        return QArray(format=self.format, **specs)


def _check_split(
    name: str, placement: Placement, axis: str | None, size: int, unit: int, grouped: int, format: QFormat
) -> None:
    """Raises a LayoutError unless whole groups are split over as many devices as the rows or columns of the matrix.

    Without this check, an axis that cannot be split would silently be repeated on every device.
    """
    if axis is None:
        return
    parts = placement.split(axis, size // unit)
    fits = size % grouped == 0 and placement.split(axis, size // grouped) == parts
    if not fits and parts > 1:
        raise LayoutError(
            f"layout {placement.layout.name!r}: {name} of size {size} along {axis} is split over {parts} devices, "
            f"{size // parts} each, which is no whole number of groups of {grouped} ({format.kind}); quantize with a "
            f"smaller group size, use a layout that does not split {axis}, or dequantize the weights (--weights bf16)"
        )
