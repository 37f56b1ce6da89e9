"""TensorFile: the interface of an open file of named tensors, safetensors or GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

__all__ = ["TensorEntry", "TensorFile"]


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
      name: Name of the tensor in the file.
      dtype_name: The stored dtype in safetensors' spelling, such as "BF16". A quantized GGUF tensor has "F32", the
        dtype that it is dequantized to.
      dtype: The numpy dtype of the values that `TensorFile.read` gives.
      shape: Dimensions, outermost first.
      begin, end: The byte range in the file, half-open.
    """

    name: str
    dtype_name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile(Protocol):
    """An open file of named tensors. Several threads may read it at the same time."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The file's tensors, by name."""
        ...

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Casts `tensor[index]` into `out`, whose shape is that of the slice."""
        ...

    def close(self) -> None:
        """Closes the file. Arrays that were read stay valid."""
        ...
