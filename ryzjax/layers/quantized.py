"""QuantizedWeight: the weight of a linear layer as the leaves of a QArray, sharded as the matrix would be."""

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
    """A QArray [..., N, K] in parameters of its own.

    Args:
      name: of the weight, for messages.
      format: of the QArray.
      shape, axes, units: of the matrix it stands for, as of a `Weight`.
      placement: decides how the matrix is split; a shard holds whole groups.

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
        # A scale for all rows, or all columns, is the same on every device.
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
                # bfloat16 scales are declared as their bits: a panel's are sliced out of them.
                is_bits = name == "scales" and format.scale_dtype == "bfloat16"
                return Weight(leaf_shape, "bfloat16" if is_bits else dtype, scale_axes, scale_units, as_bits=is_bits)
            leaf_axes = (*outer_axes, None) if name == "order" else (None,) * len(leaf_shape)
            return Weight(leaf_shape, dtype, leaf_axes)

        try:
            shapes = format.leaf_shapes(shape)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}; quantize it with another group size, or leave it as it is") from error
        for part in LEAVES:
            setattr(self, part, leaf(part, *shapes[part]) if part in shapes else None)

    def leaves(self) -> dict[str, Weight]:
        """The parameters there are, by their name in a QArray."""
        return {name: weight for name in LEAVES if (weight := getattr(self, name)) is not None}

    def array(self) -> QArray:
        """The leaves as one QArray."""
        return QArray(format=self.format, **{name: weight[...] for name, weight in self.leaves().items()})

    def specs(self, placement: Placement, whole: tuple[str, ...]) -> QArray:
        """A QArray of PartitionSpecs, for `shard_map`.

        Args:
          whole: logical axes along which a device sees all of the matrix (it is gathered on entry).
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
    """Whole groups must divide over the devices as the plain matrix does: nothing is repeated in silence."""
    if axis is None:
        return
    parts = placement.split(axis, size // unit)
    fits = size % grouped == 0 and placement.split(axis, size // grouped) == parts
    if not fits and parts > 1:
        raise LayoutError(
            f"layout {placement.layout.name!r}: {name} of size {size} along {axis} is split over {parts} devices, "
            f"{size // parts} each, which is no whole number of groups of {grouped} ({format.kind}); quantize with a "
            f"smaller group size, or take a layout that does not split {axis}"
        )
