"""Writes safetensors files, with one tensor in memory at a time. A file appears only when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ryzjax.errors import CheckpointError

__all__ = ["TensorToWrite", "write_safetensors"]

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """A tensor to write, and a function that returns its values when they are needed.

    Attributes:
      dtype, shape: Dtype and shape of the array that `get` returns.
      get: Returns the values. It is called once.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    get: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @classmethod
    def of(cls, array: np.ndarray) -> TensorToWrite:
        """Wraps an array that is in memory already."""
        return cls(dtype=array.dtype, shape=array.shape, get=lambda: array)


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorToWrite], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file under a temporary name and renames it at the end, so that `path` is always complete.

    Args:
      path: The file to write; an existing one is replaced.
      tensors: Tensor name -> the tensor, in the order of the file.
      metadata: Texts for the header. Other readers ignore them.

    Raises:
      CheckpointError: The file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start at a multiple of 8
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name, tensor in tensors.items():
                array = tensor.get()
                if array.shape != tensor.shape or array.dtype != tensor.dtype:
                    raise ValueError(f"{name} is {array.dtype} {array.shape}; declared {tensor.dtype} {tensor.shape}")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); check the path, its permissions and the free space"
        ) from error
