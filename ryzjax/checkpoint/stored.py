"""Stored: where one of our weights lies in a checkpoint, and how to read a part of it from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError

__all__ = ["FLOATS", "Stored", "StoredWeight", "Strided"]

Index = tuple[slice, ...]

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of a plain tensor: a cast makes them what the model wants."""


class StoredWeight(Protocol):
    """A way to store a weight. Shapes are of the weight, `[..., out, in]`, not of the file's tensors."""

    @property
    def names(self) -> tuple[str, ...]:
        """The file's tensors it is made of."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What the file may store them as."""
        ...

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The weight's shape, as the file's tensors have it.

        Raises:
          CheckpointError: the tensors do not fit each other.
        """
        ...

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """Casts `weight[index]` into `out`, whose shape is the slice's."""
        ...


@dataclass(frozen=True)
class Stored:
    """One tensor, or one tensor an expert, stacked along a new first dimension.

    Attributes:
      names: one, or one an expert.
      is_stack: whether there is that first dimension (there may be one expert).
      dtypes: see `StoredWeight`.
    """

    names: tuple[str, ...]
    is_stack: bool = False
    dtypes: tuple[str, ...] = FLOATS

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """See `StoredWeight`."""
        inner = entries[self.names[0]].shape
        for name in self.names:
            if entries[name].shape != inner:
                raise CheckpointError(
                    f"tensor {name!r} has shape {list(entries[name].shape)}; expected {list(inner)}, as "
                    f"{self.names[0]!r} has. The file is damaged or of another model."
                )
        return (len(self.names), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """See `StoredWeight`."""
        if not self.is_stack:
            files[self.names[0]].read(self.names[0], index, out)
            return
        for name, part in zip(self.names[index[0]], out, strict=True):
            files[name].read(name, index[1:], part)


@dataclass(frozen=True)
class Strided:
    """Every so many rows of a tensor: a part of a fused projection, or one of two that are interleaved.

    Attributes:
      name: the tensor.
      rows: which of its rows (out features) are the weight's, as a slice with positive step.
      total: rows the tensor must have; None where any number will do that gives the weight its shape.
      axis: the dimension of the rows in the weight, from its end: -2 in a matrix, -1 in a bias.
      is_transposed: the file has `[..., in, out]`.
      dtypes: see `StoredWeight`.
    """

    name: str
    rows: slice
    axis: int
    total: int | None = None
    is_transposed: bool = False
    dtypes: tuple[str, ...] = FLOATS

    @property
    def names(self) -> tuple[str, ...]:
        """See `StoredWeight`."""
        return (self.name,)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """See `StoredWeight`."""
        shape = list(entries[self.name].shape)
        if self.is_transposed:
            shape[-1], shape[-2] = shape[-2], shape[-1]
        if self.total is not None and shape[self.axis] != self.total:
            raise CheckpointError(
                f"tensor {self.name!r} has shape {list(entries[self.name].shape)}; expected {self.total} rows, "
                "those of its fused parts together by config.json. The weights and the config are of different models."
            )
        shape[self.axis] = len(range(*self.rows.indices(shape[self.axis])))
        return tuple(shape)

    def read(self, files: Mapping[str, TensorFile], index: Index, out: np.ndarray) -> None:
        """See `StoredWeight`."""
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
