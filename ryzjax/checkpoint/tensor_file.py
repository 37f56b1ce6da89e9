"""TensorFile: what the loader asks of a file of named tensors, whatever its format."""

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
      name: as the file spells it (a GGUF file's in Hugging Face's spelling).
      dtype_name: as the file spells it, such as "BF16".
      dtype: of the values that are read, as a numpy dtype.
      shape: dimensions, outermost first.
      begin, end: byte range in the file, half-open.
    """

    name: str
    dtype_name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile(Protocol):
    """An open file; safe to read from several threads."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Its tensors by name."""
        ...

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Casts `tensor[index]` into `out`, whose shape is the slice's."""
        ...

    def close(self) -> None:
        """Lets go of the file; what was read stays valid."""
        ...
