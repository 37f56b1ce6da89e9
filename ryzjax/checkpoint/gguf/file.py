"""GgufFile: reads the tensors and metadata of a GGUF file. The `gguf` package dequantizes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry
from ryzjax.errors import CheckpointError, MissingExtraError
from ryzjax.gguf_header import GgufTensor, read_gguf_header

if TYPE_CHECKING:
    import gguf

__all__ = ["GgufFile", "RowTransform"]

_CHUNK_BYTES = 4 * 2**20
"""Bytes of float32 values dequantized at a time: small enough for the CPU's cache, large enough for numpy."""
_PLAIN = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


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
        quantization_types = _gguf(path).GGMLQuantizationType
        header = read_gguf_header(path)
        self._metadata = header.metadata
        self._bytes: np.ndarray = np.memmap(path, mode="r")
        self._tensors: dict[str, _Tensor] = {}
        self.entries: dict[str, TensorEntry] = {}
        self.block_kinds: dict[str, str] = {}
        for found in header.tensors:
            try:
                tensor = _tensor(found, quantization_types(found.type))
            except ValueError as error:
                raise CheckpointError(
                    f"{path}: tensor {found.name!r} has an unknown type or does not fit its type ({error}); the file "
                    "is damaged, or newer than the gguf package"
                ) from error
            self._tensors[found.name] = tensor
            self.entries[found.name] = _entry(path, tensor, self._bytes.size)
            if tensor.kind.name not in _PLAIN and tensor.kind.name != "BF16":
                self.block_kinds[found.name] = tensor.kind.name

    def metadata(self) -> Mapping[str, object]:
        """Returns all metadata: key -> number, string, boolean, or a list of them."""
        return self._metadata

    def close(self) -> None:
        """Closes the file. Arrays that were read stay valid."""
        self._tensors.clear()
        del self._bytes

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Dequantizes `tensor[index]` into `out`, whose shape is that of the slice, a few megabytes at a time."""
        from gguf import quants

        tensor, transform = self._tensors[name], self.transforms.get(name, RowTransform())
        shape = self.entries[name].shape
        data = self._stored(tensor)
        if len(shape) == 3:
            for i, outer in enumerate(range(*index[0].indices(shape[0]))):
                self._read_rows(data[outer], tensor, transform, index[1:], out[i], quants)
        else:
            self._read_rows(data, tensor, transform, index, out, quants)

    def raw_rows(self, name: str, rows: slice) -> np.ndarray:
        """Returns rows of a matrix as stored, uint8 [rows, bytes], in the order of `read`."""
        data = self._stored(self._tensors[name])
        transform = self.transforms.get(name, RowTransform())
        if not transform.interleaved_head_dim:
            return data[rows]  # a view of the mapped file
        return data[_rows(transform, *rows.indices(data.shape[0]))]

    def _stored(self, tensor: _Tensor) -> np.ndarray:
        return self._bytes[tensor.begin : tensor.end].view(tensor.dtype).reshape(tensor.stored_shape)

    def _read_rows(self, data, tensor: _Tensor, transform: RowTransform, index: tuple[slice, ...], out, quants) -> None:
        if data.ndim == 1:
            values = quants.dequantize(data, tensor.kind)
            rows = _rows(transform, *index[0].indices(len(values)))
            out[...] = values[rows] - transform.shift
            return
        rows = _rows(transform, *index[0].indices(data.shape[0]))
        width = tensor.shape[-1]
        step = max(1, _CHUNK_BYTES // (4 * width))
        for low in range(0, len(rows), step):
            values = quants.dequantize(data[rows[low : low + step]], tensor.kind)
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


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor of the file.

    Attributes:
      name: The name.
      kind: The ggml type.
      shape: The shape of the values.
      stored_shape: The shape of the stored numbers. Blocks are bytes, uint8 [..., bytes of a row].
      dtype: The dtype of the stored numbers.
      begin, end: The bytes of the file.
    """

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    end: int


def _tensor(found: GgufTensor, kind: gguf.GGMLQuantizationType) -> _Tensor:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import quant_shape_to_byte_shape

    dtype, stored_shape = np.dtype(_PLAIN.get(kind.name, np.uint8)), found.shape
    if kind.name not in _PLAIN:
        stored_shape = quant_shape_to_byte_shape(found.shape, kind)
    num_values = math.prod(found.shape)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return _Tensor(
        name=found.name,
        kind=kind,
        shape=found.shape,
        stored_shape=tuple(stored_shape),
        dtype=dtype,
        begin=found.begin,
        end=found.begin + num_values * block_bytes // block,
    )


def _gguf(path: Path) -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading GGUF files needs the gguf package; pip install 'ryzjax[gguf]'"
        ) from error
    return gguf


def _entry(path: Path, tensor: _Tensor, size: int) -> TensorEntry:
    from gguf import GGML_QUANT_SIZES, quants

    kind = tensor.kind
    if tensor.end > size:
        raise CheckpointError(
            f"{path}: tensor {tensor.name!r} ends at byte {tensor.end}, the file at {size}; it is truncated, download "
            "it again"
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
        shape=tensor.shape,
        begin=tensor.begin,
        end=tensor.end,
    )
