"""QuantizedLeaf and DequantizedWeight: the two forms in which the loader reads a quantized matrix.

Both are `StoredWeight`s of one matrix, or of a stack with one matrix per expert. A `QuantizedLeaf` is one leaf of the
QArray. A `DequantizedWeight` is the matrix as floats, for models that multiply with plain weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError

__all__ = ["DequantizedWeight", "QuantizedLeaf"]

_CHUNK_ELEMENTS = 4 * 2**20
"""Weights unpacked at a time."""
_ANY_DTYPE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Any dtype is allowed here: a `StoredMatrix` checks the dtypes of its tensors when it is created."""


@dataclass(frozen=True)
class QuantizedLeaf:
    """A `StoredWeight` that is one leaf of a QArray.

    Attributes:
      matrices: One matrix, or one per expert.
      leaf: The name of the leaf, one of `qarray.LEAVES`.
      is_stack: Whether the weight has a first dimension of experts.
      dtypes: Dtypes that the file may store the tensors in.
    """

    matrices: tuple[StoredMatrix, ...]
    leaf: str
    is_stack: bool = False
    dtypes: tuple[str, ...] = _ANY_DTYPE

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of all matrices."""
        return tuple(name for matrix in self.matrices for name in matrix.names)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """The shape of the leaf: as in `QFormat.leaf_shapes`, with a first dimension of experts in a stack."""
        del entries
        first = self.matrices[0]
        inner = first.format.leaf_shapes(first.shape)[self.leaf][0]
        return (len(self.matrices), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: tuple[slice, ...], out: np.ndarray) -> None:
        """Copies `leaf[index]` into `out`, whose shape is that of the slice.

        Raises:
          CheckpointError: Scales or float8 values are not finite.
        """
        del files
        if not self.is_stack:
            self._read(self.matrices[0], index, out)
            return
        for matrix, part in zip(self.matrices[index[0]], out, strict=True):
            self._read(matrix, index[1:], part)

    def _read(self, matrix: StoredMatrix, index: tuple[slice, ...], out: np.ndarray) -> None:
        if self.leaf != "values":
            values = matrix.leaf(self.leaf)[index]
            if values.dtype.kind not in "iu" and not np.all(np.isfinite(values.astype(np.float32))):
                path = matrix.file_of[matrix.names[0]].path
                raise CheckpointError(
                    f"{path}: {self.leaf} of {matrix.base!r} are not finite; the file is damaged or the quantization "
                    "failed. Use another copy of the model."
                )
            np.copyto(out, values)
            return
        n, k = matrix.shape
        per_byte = 2 if matrix.format.pack else 1
        first, last, _ = index[0].indices(n)
        low, high, _ = index[1].indices(k // per_byte)
        step = max(1, _CHUNK_ELEMENTS // max(1, (high - low) * per_byte))
        for row in range(first, last, step):
            stop = min(row + step, last)
            q = matrix.values(slice(row, stop), slice(low * per_byte, high * per_byte))
            if matrix.format.kind == "float8" and np.any((q & 0x7F) == 0x7F):
                path = matrix.file_of[matrix.names[0]].path
                raise CheckpointError(
                    f"{path}: the float8 weight of {matrix.base!r} has NaN in rows {row} to {stop}; the file is "
                    "damaged or the quantization failed. Use another copy of the model."
                )
            np.copyto(out[row - first : stop - first], q)


@dataclass(frozen=True)
class DequantizedWeight:
    """A `StoredWeight` that is a quantized matrix, or a stack of them, dequantized to floats.

    Attributes:
      matrices: One matrix, or one per expert.
      is_stack: Whether the weight has a first dimension of experts.
      dtypes: Dtypes that the file may store the tensors in.
    """

    matrices: tuple[StoredMatrix, ...]
    is_stack: bool = False
    dtypes: tuple[str, ...] = _ANY_DTYPE

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of all matrices."""
        return tuple(name for matrix in self.matrices for name in matrix.names)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """[N, K], or [experts, N, K] in a stack."""
        del entries
        inner = self.matrices[0].shape
        return (len(self.matrices), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: tuple[slice, ...], out: np.ndarray) -> None:
        """Casts the dequantized `weight[index]` into `out`, whose shape is that of the slice."""
        del files
        if not self.is_stack:
            self._read(self.matrices[0], index, out)
            return
        for matrix, part in zip(self.matrices[index[0]], out, strict=True):
            self._read(matrix, index[1:], part)

    def _read(self, matrix: StoredMatrix, index: tuple[slice, ...], out: np.ndarray) -> None:
        first, last, _ = index[0].indices(matrix.shape[0])
        step = math.ceil(_CHUNK_ELEMENTS / matrix.shape[1])
        for row in range(first, last, step):
            stop = min(row + step, last)
            values = matrix.dequantized(slice(row, stop))[:, index[1]]
            np.copyto(out[row - first : stop - first], values, casting="unsafe")
