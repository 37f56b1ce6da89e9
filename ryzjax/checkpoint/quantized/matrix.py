"""StoredMatrix: a quantized matrix as a checkpoint has it; and how it becomes the leaves of a QArray, or floats.

A format says how to read integers, scales and zeros of any rows and columns. What is made of them is the same for all:
our packing of nibbles, the permutation of act-order, stacks of experts, parts of fused projections.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.qarray import QFormat, pack_nibbles

__all__ = ["DequantizedWeight", "QuantizedLeaf", "RowsOf", "StoredMatrix", "read_tensor"]

_CHUNK_ELEMENTS = 4 * 2**20
"""Weights unpacked at a time."""
_ALL = slice(None)


def read_tensor(home: Mapping[str, TensorFile], name: str, *index: slice) -> np.ndarray:
    """A tensor, or a part of it, as the file stores it."""
    entry = home[name].entries[name]
    full = (*index, *(_ALL for _ in entry.shape[len(index) :]))
    shape = [len(range(*part.indices(size))) for part, size in zip(full, entry.shape, strict=True)]
    out = np.empty(shape, entry.dtype)
    home[name].read(name, full, out)
    return out


class StoredMatrix(ABC):
    """A quantized matrix [N, K] of a checkpoint.

    Args:
      home: tensor name -> the file it is in.
      base: name of the module in the files, without ".weight".
      names: all its tensors but the bias.
      shape: (N, K) as the model has it.
    """

    format: QFormat
    """What it is in memory; set by the class of the format."""
    float_format: str | None = None
    """Why it cannot stay quantized, where it cannot."""

    def __init__(self, home: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        self.home = home
        self.base = base
        self.names = names
        self.shape = shape

    @abstractmethod
    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """Values of a part [N, K], columns in the order of `format`: uint8 nibbles, int8, or the bits of float8."""

    @abstractmethod
    def leaf(self, name: str) -> np.ndarray:
        """A small leaf of the QArray, whole: scales, zeros, codebook, order, and those of nested scales."""

    def entry(self, suffix: str) -> TensorEntry:
        """The description of one of its tensors."""
        name = f"{self.base}.{suffix}"
        return self.home[name].entries[name]

    def read(self, suffix: str, *index: slice) -> np.ndarray:
        """One of its tensors, or a part."""
        return read_tensor(self.home, f"{self.base}.{suffix}", *index)

    def rows_of(self, suffix: str) -> int:
        """Rows of one of its tensors, before it is checked; 1 where it has none or is missing."""
        name = f"{self.base}.{suffix}"
        shape = self.home[name].entries[name].shape if name in self.home else ()
        return max(1, shape[0]) if shape else 1

    def expect(self, suffix: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> TensorEntry:
        """The description of one of its tensors, checked.

        Raises:
          CheckpointError: it is missing, or of another shape or dtype.
        """
        name = f"{self.base}.{suffix}"
        if name not in self.home:
            first = self.home[self.names[0]].path
            raise CheckpointError(f"{first}: tensor {name!r} is missing beside {self.names[0]!r}; download it again")
        entry = self.entry(suffix)
        if entry.shape not in shapes or entry.dtype_name not in dtypes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(
                suffix,
                f"is {entry.dtype_name} {list(entry.shape)}; expected {' or '.join(dtypes)} {wanted} for a weight of "
                f"{list(self.shape)}. The weights and the config are of different models, or the format is another.",
            )
        return entry

    def error(self, suffix: str, what: str) -> CheckpointError:
        """An error about one of its tensors; `what` says what is wrong with it."""
        name = f"{self.base}.{suffix}"
        return CheckpointError(f"{self.home[name].path}: tensor {name!r} {what}")

    def dequantized(self, rows: slice) -> np.ndarray:
        """float32 [rows, K], columns in the order of the inputs: the product in float32, as `qarray.dequantize`."""
        fmt = self.format
        n, k = self.shape
        first, last, _ = rows.indices(n)
        block = fmt.rows or n
        here = np.arange(first, last) // block
        columns = np.arange(k) // (fmt.group or k)
        scales = self.scales()[here][:, columns]
        q = self.integers(rows, _ALL)
        if fmt.kind == "float4":
            values = self.leaf("codebook")[q]
        elif fmt.kind == "float8":
            values = q.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        elif fmt.has_zeros:
            values = q.astype(np.float32) - self.leaf("zeros")[here][:, columns].astype(np.float32)
        else:
            values = q.astype(np.float32) - np.float32(8 if fmt.kind == "int4" else 0)
        values *= scales
        if fmt.has_order:
            out = np.empty_like(values)
            out[:, self.leaf("order")] = values
            return out
        return values

    def scales(self) -> np.ndarray:
        """float32 scales, those of the second level multiplied out."""
        scales = self.leaf("scales")
        if self.format.scale_dtype != "nested":
            return scales.astype(np.float32)
        block = np.arange(scales.size).reshape(scales.shape) // 256
        nested = self.leaf("scale_codes")[scales] * self.leaf("scale_blocks")[block]
        return nested + self.leaf("scale_offset")


class RowsOf(StoredMatrix):
    """Some rows of a matrix: one of the projections that a checkpoint stores as one.

    Args:
      whole: the matrix.
      rows: of it, with step 1; they begin and end with a block of scales.
    """

    def __init__(self, whole: StoredMatrix, rows: range):
        super().__init__(whole.home, whole.base, whole.names, (len(rows), whole.shape[1]))
        self.whole, self.rows = whole, rows
        self.format = whole.format
        block = self.format.rows
        if rows.step != 1 or ((block or 1) > 1 and (rows.start % block or len(rows) % block)):  # pyright: ignore
            self.float_format = f"rows {rows} of a fused matrix are no whole blocks"
        self.float_format = self.float_format or whole.float_format

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """See `StoredMatrix`."""
        part = self.rows[rows]
        return self.whole.integers(slice(part.start, part.stop, part.step), columns)

    def leaf(self, name: str) -> np.ndarray:
        """See `StoredMatrix`."""
        leaf, block = self.whole.leaf(name), self.format.rows
        if name in ("scales", "zeros") and block is not None:
            return leaf[self.rows.start // block : -(-self.rows.stop // block)]
        return leaf

    def dequantized(self, rows: slice) -> np.ndarray:
        """See `StoredMatrix`."""
        part = self.rows[rows]
        return self.whole.dequantized(slice(part.start, part.stop))[:: part.step]


_ANY_DTYPE = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""A matrix has checked its tensors when it was made."""


@dataclass(frozen=True)
class QuantizedLeaf:
    """A `StoredWeight`: one leaf of a QArray.

    Attributes:
      matrix: one, or one an expert.
      leaf: of `qarray.LEAVES`.
      is_stack: whether there is a first dimension of experts.
    """

    matrices: tuple[StoredMatrix, ...]
    leaf: str
    is_stack: bool = False
    dtypes: tuple[str, ...] = _ANY_DTYPE

    @property
    def names(self) -> tuple[str, ...]:
        """See `StoredWeight`."""
        return tuple(name for matrix in self.matrices for name in matrix.names)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """See `StoredWeight`."""
        del entries
        first = self.matrices[0]
        inner = first.format.leaf_shapes(first.shape)[self.leaf][0]
        return (len(self.matrices), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: tuple[slice, ...], out: np.ndarray) -> None:
        """See `StoredWeight`.

        Raises:
          CheckpointError: scales or float8 values that are not finite.
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
                raise CheckpointError(
                    f"{matrix.home[matrix.names[0]].path}: {self.leaf} of {matrix.base!r} are not finite; the file is "
                    "damaged or the quantization failed. Take another copy of the model."
                )
            np.copyto(out, values)
            return
        n, k = matrix.shape
        pack = matrix.format.pack
        per_byte = 2 if pack else 1
        first, last, _ = index[0].indices(n)
        low, high, _ = index[1].indices(k // per_byte)
        step = max(1, _CHUNK_ELEMENTS // max(1, (high - low) * per_byte))
        for row in range(first, last, step):
            stop = min(row + step, last)
            q = matrix.integers(slice(row, stop), slice(low * per_byte, high * per_byte))
            if matrix.format.kind == "float8" and np.any((q & 0x7F) == 0x7F):
                raise CheckpointError(
                    f"{matrix.home[matrix.names[0]].path}: the float8 weight of {matrix.base!r} has NaN in rows {row} "
                    f"to {stop}; the file is damaged or the quantization failed. Take another copy of the model."
                )
            np.copyto(out[row - first : stop - first], pack_nibbles(q, pack) if pack else q)


@dataclass(frozen=True)
class DequantizedWeight:
    """A `StoredWeight`: a quantized matrix, or a stack of them, as floats.

    Attributes: as of `QuantizedLeaf`.
    """

    matrices: tuple[StoredMatrix, ...]
    is_stack: bool = False
    dtypes: tuple[str, ...] = _ANY_DTYPE

    @property
    def names(self) -> tuple[str, ...]:
        """See `StoredWeight`."""
        return tuple(name for matrix in self.matrices for name in matrix.names)

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """See `StoredWeight`."""
        del entries
        inner = self.matrices[0].shape
        return (len(self.matrices), *inner) if self.is_stack else inner

    def read(self, files: Mapping[str, TensorFile], index: tuple[slice, ...], out: np.ndarray) -> None:
        """See `StoredWeight`."""
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
