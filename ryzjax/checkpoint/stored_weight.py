"""StoredWeight: where one of our weights is in a checkpoint, and how to read a part of it from there.

A name map returns a `StoredWeight` for each of our weight names. `WholeTensors` and `TensorRows` cover plain tensors;
`mxfp4` and `quantized.quantized_weight` have the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError

__all__ = ["FLOATS", "StoredWeight", "TensorRows", "WholeTensors"]

Index = tuple[slice, ...]

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes of plain tensors. A cast converts them to the dtype of the model."""


class StoredWeight(Protocol):
    """A weight in a checkpoint. All shapes are those of the weight, `[..., out, in]`, not of the file's tensors."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the file's tensors that make up the weight."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that the file may store those tensors in."""
        ...

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The shape of the weight, computed from the shapes of the file's tensors.

        Args:
          entries: Tensor name -> its entry, for all of `names`.

        Raises:
          CheckpointError: The shapes of the tensors do not match.
        """
        ...

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """Casts `weight[index]` into `out`, whose shape is that of the slice.

        Args:
          files: Tensor name -> the file that holds it.
          index: A slice of each dimension of the weight.
          out: The array to fill.
        """
        ...


@dataclass(frozen=True)
class WholeTensors:
    """A weight that is one whole tensor, or one tensor per expert, stacked along a new first dimension.

    Attributes:
      names: The tensor, or the tensors of the experts in order.
      is_stack: Whether the weight has a first dimension of experts, even for one expert.
      dtypes: Dtypes that the file may store the tensors in.
    """

    names: tuple[str, ...]
    is_stack: bool = False
    dtypes: tuple[str, ...] = FLOATS

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The tensors' common shape, with a first dimension of experts in a stack."""
        inner = entries[self.names[0]].shape
        for name in self.names:
            if entries[name].shape != inner:
                raise CheckpointError(
                    f"tensor {name!r} has shape {list(entries[name].shape)}; expected {list(inner)}, as "
                    f"{self.names[0]!r} has. The file is damaged or belongs to another model."
                )
        return (len(self.names), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """Casts `weight[index]` into `out`, whose shape is that of the slice."""
        if not self.is_stack:
            files[self.names[0]].read(self.names[0], index, out)
            return
        for name, part in zip(self.names[index[0]], out, strict=True):
            files[name].read(name, index[1:], part)


@dataclass(frozen=True)
class TensorRows:
    """A weight that is some rows of a tensor: a part of a fused projection, or one of two interleaved ones.

    Attributes:
      name: Name of the tensor.
      rows: The rows (out features) of the tensor that belong to the weight, as a slice with positive step.
      axis: The dimension of the rows, counted from the end: -2 in a matrix, -1 in a bias.
      total: The number of rows that the tensor must have; None allows any number that gives the weight its shape.
      is_transposed: Whether the file stores `[..., in, out]`.
      dtypes: Dtypes that the file may store the tensor in.
    """

    name: str
    rows: slice
    axis: int
    total: int | None = None
    is_transposed: bool = False
    dtypes: tuple[str, ...] = FLOATS

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the tensor, as a tuple."""
        return (self.name,)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The shape of the selected rows, as `[..., out, in]`."""
        shape = list(entries[self.name].shape)
        if self.is_transposed:
            shape[-1], shape[-2] = shape[-2], shape[-1]
        if self.total is not None and shape[self.axis] != self.total:
            raise CheckpointError(
                f"tensor {self.name!r} has shape {list(entries[self.name].shape)}; expected {self.total} rows, "
                "the sum of its fused parts by config.json. The weights and the config belong to different models."
            )
        shape[self.axis] = len(range(*self.rows.indices(shape[self.axis])))
        return tuple(shape)

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """Casts `weight[index]` into `out`, whose shape is that of the slice."""
        size = files[self.name].entries[self.name].shape
        size = (*size[:-2], size[-1], size[-2]) if self.is_transposed else size
        rows = range(*self.rows.indices(size[self.axis]))
        here = index[self.axis]
        low, high, _ = here.indices(len(rows))
        part = list(index)
        part[self.axis] = slice(rows.start + low * rows.step, rows.start + high * rows.step, rows.step)
        if self.is_transposed:
            part[-1], part[-2] = part[-2], part[-1]
            out = out.swapaxes(-1, -2)
        files[self.name].read(self.name, tuple(part), out)
