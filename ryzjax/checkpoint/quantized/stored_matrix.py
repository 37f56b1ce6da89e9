"""StoredMatrix: a quantized matrix as a checkpoint stores it.

A subclass per format reads the integers, scales and zeros of any rows and columns. Everything that is the same for all
formats builds on those three: our packing of nibbles, the permutation of act-order, stacks of experts, and parts of
fused projections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.qarray import QFormat, pack_nibbles

__all__ = ["RowsOf", "StoredMatrix", "read_tensor"]

_ALL = slice(None)


def read_tensor(file_of: Mapping[str, TensorFile], name: str, *index: slice) -> np.ndarray:
    """Reads a tensor, or a part of it, in the dtype that the file stores.

    Args:
      file_of: Tensor name -> the file that holds it.
      name: Name of the tensor.
      *index: Slices of its first dimensions; the others are read whole.
    """
    entry = file_of[name].entries[name]
    full = (*index, *(_ALL for _ in entry.shape[len(index) :]))
    shape = [len(range(*part.indices(size))) for part, size in zip(full, entry.shape, strict=True)]
    out = np.empty(shape, entry.dtype)
    file_of[name].read(name, full, out)
    return out


class StoredMatrix(ABC):
    """A quantized matrix [N, K] of a checkpoint. A subclass per format implements `integers` and `leaf`.

    Args:
      file_of: Tensor name -> the file that holds it.
      base: Name of the module in the files, without ".weight".
      names: Names of all the module's tensors except the bias.
      shape: (N, K) of the model's layer.
    """

    format: QFormat
    """The format in memory. The subclass sets it."""
    float_reason: str | None = None
    """The reason why the matrix must be dequantized; None if it can stay quantized."""

    def __init__(self, file_of: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        self.file_of = file_of
        self.base = base
        self.names = names
        self.shape = shape

    @abstractmethod
    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """Reads the stored values of some rows and columns: nibbles as uint8, int8, or float8 as its bits.

        Columns are in the order of the QArray: with act-order, column i multiplies input `order[i]`.
        """

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        """Reads some rows and columns of the leaf `values`: what `integers` returns, with nibbles packed.

        A cut between columns does not split a run of packed nibbles.
        """
        q = self.integers(rows, columns)
        return pack_nibbles(q, self.format.pack) if self.format.pack else q

    @abstractmethod
    def leaf(self, name: str) -> np.ndarray:
        """Reads a whole leaf of the QArray other than `values`, such as scales, zeros, codebook or order."""

    def entry(self, suffix: str) -> TensorEntry:
        """The dtype, shape and position of the tensor `<base>.<suffix>`."""
        name = f"{self.base}.{suffix}"
        return self.file_of[name].entries[name]

    def read(self, suffix: str, *index: slice) -> np.ndarray:
        """Reads the tensor `<base>.<suffix>`, or a part of it."""
        return read_tensor(self.file_of, f"{self.base}.{suffix}", *index)

    def rows_of(self, suffix: str) -> int:
        """The rows of a tensor that has not been checked yet; 1 if it has no dimension or is missing."""
        name = f"{self.base}.{suffix}"
        shape = self.file_of[name].entries[name].shape if name in self.file_of else ()
        return max(1, shape[0]) if shape else 1

    def expect(self, suffix: str, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> TensorEntry:
        """Checks the tensor `<base>.<suffix>` and returns its entry.

        Args:
          suffix: The end of the tensor's name.
          shapes: The allowed shapes.
          dtypes: The allowed dtypes, as the file names them.

        Raises:
          CheckpointError: The tensor is missing, or has another shape or dtype.
        """
        name = f"{self.base}.{suffix}"
        if name not in self.file_of:
            first = self.file_of[self.names[0]].path
            raise CheckpointError(f"{first}: tensor {name!r} is missing beside {self.names[0]!r}; download it again")
        entry = self.entry(suffix)
        if entry.shape not in shapes or entry.dtype_name not in dtypes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(
                suffix,
                f"is {entry.dtype_name} {list(entry.shape)}; expected {' or '.join(dtypes)} {wanted} for a weight of "
                f"{list(self.shape)}. The weights and the config belong to different models or formats.",
            )
        return entry

    def error(self, suffix: str, what: str) -> CheckpointError:
        """Returns (does not raise) an error about the tensor `<base>.<suffix>`; `what` completes the sentence."""
        name = f"{self.base}.{suffix}"
        return CheckpointError(f"{self.file_of[name].path}: tensor {name!r} {what}")

    def dequantized(self, rows: slice) -> np.ndarray:
        """Dequantizes some rows to float32 [rows, K], with columns in the order of the inputs.

        The arithmetic is float32, so that the result equals `qarray.dequantize`.
        """
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
        """Reads the scales as float32 [N / rows, K / group]. Nested scales are dequantized."""
        scales = self.leaf("scales")
        if self.format.scale_dtype != "nested":
            return scales.astype(np.float32)
        block = np.arange(scales.size).reshape(scales.shape) // 256
        nested = self.leaf("scale_codes")[scales] * self.leaf("scale_blocks")[block]
        return nested + self.leaf("scale_offset")


class RowsOf(StoredMatrix):
    """Some rows of a matrix: one of several projections that a checkpoint fuses into one matrix.

    Args:
      whole: The fused matrix.
      rows: The rows of this projection. The matrix stays quantized only if their step is 1 and they are whole blocks of
        rows that share scales.
    """

    def __init__(self, whole: StoredMatrix, rows: range):
        super().__init__(whole.file_of, whole.base, whole.names, (len(rows), whole.shape[1]))
        self.whole, self.rows = whole, rows
        self.format = whole.format
        block = self.format.rows
        if rows.step != 1 or ((block or 1) > 1 and (rows.start % block or len(rows) % block)):  # pyright: ignore
            self.float_reason = f"rows {rows} of a fused matrix are not whole blocks of scales"
        self.float_reason = self.float_reason or whole.float_reason

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        return self.whole.integers(self._part(rows), columns)

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        return self.whole.values(self._part(rows), columns)

    def _part(self, rows: slice) -> slice:
        part = self.rows[rows]
        return slice(part.start, part.stop, part.step)

    def leaf(self, name: str) -> np.ndarray:
        leaf, block = self.whole.leaf(name), self.format.rows
        if name in ("scales", "zeros") and block is not None:
            return leaf[self.rows.start // block : -(-self.rows.stop // block)]
        return leaf

    def dequantized(self, rows: slice) -> np.ndarray:
        part = self.rows[rows]
        return self.whole.dequantized(slice(part.start, part.stop))[:: part.step]
