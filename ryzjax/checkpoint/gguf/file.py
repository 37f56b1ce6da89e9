"""GgufFile: reads the tensors and metadata of a GGUF file. The `gguf` package parses and dequantizes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry
from ryzjax.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    import gguf

__all__ = ["GgufFile", "RowTransform"]

_CHUNK_BYTES = 4 * 2**20
"""Bytes of float32 values dequantized at a time: small enough for the CPU's cache, large enough for numpy."""
_PLAIN = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_READ_ERRORS = (
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    UnicodeDecodeError,
    struct.error,
    MemoryError,
)
"""The exceptions that the package's reader raises on damaged files."""


@dataclass(frozen=True)
class RowTransform:
    """A change that llama.cpp's converter made to a tensor. `GgufFile.read` undoes it.

    Attributes:
      interleaved_head_dim: The head dim d, if the rows of each head were permuted for interleaved RoPE
        (0, d/2, 1, ...); 0 if they were not.
      shift: The number that was added to every value (1 for Gemma's norms).
    """

    interleaved_head_dim: int = 0
    shift: float = 0.0


class GgufFile:
    """An open GGUF file. Several threads may read it at the same time.

    Args:
      path: Path of the file.

    Attributes:
      path: Path of the file.
      entries: The tensors, by name.
      block_kinds: Tensor name -> the kind of its quantized blocks, such as "Q4_0", for tensors that have them.
      transforms: Tensor name -> the converter's change to undo; set by `OpenCheckpoint`, which knows the family.

    Raises:
      CheckpointError: The file is missing, truncated or not GGUF, or a tensor's type cannot be dequantized.
      MissingExtraError: The `gguf` package is not installed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.transforms: Mapping[str, RowTransform] = {}
        self._reader = _open(path)
        self.entries: dict[str, TensorEntry] = {}
        self.block_kinds: dict[str, str] = {}
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        size = path.stat().st_size
        for tensor in self._reader.tensors:
            self.entries[tensor.name] = _entry(path, tensor, size)
            if tensor.tensor_type.name not in _PLAIN and tensor.tensor_type.name != "BF16":
                self.block_kinds[tensor.name] = tensor.tensor_type.name

    def metadata(self) -> dict[str, object]:
        """Returns all metadata: key -> number, string, boolean, or a list of them.

        Raises:
          CheckpointError: A value cannot be read.
        """
        try:
            return {name: field.contents() for name, field in self._reader.fields.items()}
        except _READ_ERRORS as error:
            raise CheckpointError(f"{self.path}: its metadata cannot be read ({error}); download it again") from error

    def close(self) -> None:
        """Closes the file. Arrays that were read stay valid."""
        self._tensors.clear()
        del self._reader

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Dequantizes `tensor[index]` into `out`, whose shape is that of the slice, a few megabytes at a time."""
        from gguf import quants

        tensor, transform = self._tensors[name], self.transforms.get(name, RowTransform())
        shape = self.entries[name].shape
        # The package has all dimensions but the last as rows of one matrix, in the same order as `out`.
        if len(shape) == 3:
            for i, outer in enumerate(range(*index[0].indices(shape[0]))):
                self._read_rows(tensor.data[outer], tensor, transform, index[1:], out[i], quants)
        else:
            self._read_rows(tensor.data, tensor, transform, index, out, quants)

    def raw_rows(self, name: str, rows: slice) -> np.ndarray:
        """Returns rows of a matrix as stored, uint8 [rows, bytes], in the order of `read`."""
        data = self._tensors[name].data
        transform = self.transforms.get(name, RowTransform())
        if not transform.interleaved_head_dim:
            return data[rows]  # a view of the mapped file
        return data[_rows(transform, *rows.indices(data.shape[0]))]

    def _read_rows(self, data, tensor, transform: RowTransform, index: tuple[slice, ...], out, quants) -> None:
        if data.ndim == 1:
            values = quants.dequantize(data, tensor.tensor_type)
            rows = _rows(transform, *index[0].indices(len(values)))
            out[...] = values[rows] - transform.shift
            return
        rows = _rows(transform, *index[0].indices(data.shape[0]))
        width = int(tensor.shape[0])
        step = max(1, _CHUNK_BYTES // (4 * width))
        for low in range(0, len(rows), step):
            values = quants.dequantize(data[rows[low : low + step]], tensor.tensor_type)
            np.copyto(out[low : low + step], values[:, index[1]] - np.float32(transform.shift), casting="unsafe")


def _rows(transform: RowTransform, start: int, stop: int, step: int) -> np.ndarray:
    """Returns the indices of the file's rows that hold rows start:stop:step of the tensor."""
    rows = np.arange(start, stop, step)
    dim = transform.interleaved_head_dim
    if not dim:
        return rows
    head, within = np.divmod(rows, dim)
    half, pair = np.divmod(within, dim // 2)
    return head * dim + 2 * pair + half


def _open(path: Path) -> gguf.GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading GGUF files needs the gguf package; pip install 'ryzjax[gguf]'"
        ) from error
    try:
        return GGUFReader(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{path}: truncated, damaged or not a GGUF file ({type(error).__name__}: {error}); download it again"
        ) from error


def _entry(path: Path, tensor: gguf.ReaderTensor, size: int) -> TensorEntry:
    from gguf import GGML_QUANT_SIZES, quants

    kind = tensor.tensor_type
    end = int(tensor.data_offset + tensor.n_bytes)
    if end > size:
        raise CheckpointError(
            f"{path}: tensor {tensor.name!r} ends at byte {end}, the file at {size}; it is truncated, download it again"
        )
    if kind.name not in _PLAIN:
        try:
            quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} has type {kind.name}, which cannot be dequantized; use another "
                "quantization of the model"
            ) from error
    return TensorEntry(
        name=tensor.name,
        dtype_name=kind.name if kind.name in _PLAIN else "F32",
        dtype=np.dtype(_PLAIN.get(kind.name, np.float32)),
        shape=tuple(int(n) for n in reversed(tensor.shape.tolist())),
        begin=int(tensor.data_offset),
        end=end,
    )
