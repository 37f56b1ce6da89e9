"""The header of a GGUF file: its metadata, and where its tensors are.

The `gguf` package reads headers too, but makes several numpy arrays for every token of a vocabulary, which takes
seconds. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from ryzjax.errors import CheckpointError

__all__ = ["GgufHeader", "GgufTensor", "read_gguf_header"]

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The number of a type of metadata -> its code in `struct`."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
      name: The name.
      type: The number of its ggml type.
      shape: The shape with the slowest dimension first, as numpy has it. Files have the fastest first.
      begin: The byte of the file where its data begin.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
      metadata: Key -> number, string, boolean, or a list of them.
      tensors: The tensors, in the order of the file.
    """

    metadata: dict[str, object]
    tensors: tuple[GgufTensor, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header of a GGUF file.

    Raises:
      CheckpointError: The file cannot be read, or is truncated, damaged or not a GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Reader(data))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except (ValueError, struct.error, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged or not a GGUF file ({type(error).__name__}: {error}); download it again"
        ) from error


class _Reader:
    """Reads a file from its start, a value at a time. It raises ValueError or struct.error at the end of the file."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def take(self, codes: str) -> tuple:
        """Returns numbers by their codes in `struct`."""
        layout = struct.Struct(f"<{codes}")
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def take_bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"{count} bytes at byte {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def string(self) -> str:
        (size,) = self.take("Q")
        return self.take_bytes(size).decode()

    def value(self, type: int, depth: int = 0) -> object:
        """Returns a value of metadata."""
        if type == _STRING:
            return self.string()
        if type == _ARRAY and depth < _MOST_DIMENSIONS:
            item, count = self.take("IQ")
            code = _SCALARS.get(item)
            if code is None:
                return [self.value(item, depth + 1) for _ in range(count)]
            size = count * struct.calcsize(f"<{code}")
            return [value for (value,) in struct.iter_unpack(f"<{code}", self.take_bytes(size))]
        if type not in _SCALARS:
            raise ValueError(f"metadata of unknown type {type} at byte {self.at}")
        (value,) = self.take(_SCALARS[type])
        return value


def _header(reader: _Reader) -> GgufHeader:
    if reader.take_bytes(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, num_tensors, num_keys = reader.take("IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, expected {' or '.join(map(str, _VERSIONS))} in little-endian order")
    metadata: dict[str, object] = {}
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(num_keys):
        key = reader.string()
        (type,) = reader.take("I")
        if key in metadata:
            raise ValueError(f"key {key!r} occurs twice")
        metadata[key] = value = reader.value(type)
        if key == "general.alignment":
            if type != _UINT32 or not isinstance(value, int) or value == 0 or value & (value - 1):
                raise ValueError(f"general.alignment is {value!r}, expected a power of two")
            alignment = value
    tensors: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(num_tensors):
        name = reader.string()
        (dimensions,) = reader.take("I")
        if dimensions > _MOST_DIMENSIONS or name in tensors:
            raise ValueError(f"tensor {name!r} occurs twice, or has {dimensions} dimensions")
        shape = reader.take("Q" * dimensions)[::-1]
        type, offset = reader.take("IQ")
        tensors[name] = type, shape, offset
    start = -(-reader.at // alignment) * alignment
    return GgufHeader(
        metadata=metadata,
        tensors=tuple(
            GgufTensor(name=name, type=type, shape=shape, begin=start + offset)
            for name, (type, shape, offset) in tensors.items()
        ),
    )
