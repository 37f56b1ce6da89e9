"""SafetensorsFile: a streaming reader of safetensors files. It checks the whole header, and maps the tensors' bytes.

The format: 8 bytes with the little-endian length of the header, a JSON header `name -> {dtype, shape, data_offsets}`,
then the bytes of the tensors without gaps (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry
from ryzjax.errors import CheckpointError

__all__ = ["SafetensorsFile"]

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 16 * 2**20
_RELEASE_BYTES = 2**18

_DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class SafetensorsFile:
    """An open safetensors file: a checked header and a read-only memory map.

    Args:
      path: Path of the file.

    Attributes:
      path: Path of the file.
      entries: The tensors, by name.
      metadata: The texts of the header's `__metadata__`.

    Raises:
      CheckpointError: The file is missing or truncated, or its header does not describe its bytes.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                prefix = file.read(8)
                header_bytes = int.from_bytes(prefix, "little")
                if len(prefix) < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                    raise CheckpointError(
                        f"{path}: {size} bytes, but the header should take {header_bytes} after the first 8; "
                        "the file is truncated or not safetensors. Download it again."
                    )
                header = file.read(header_bytes)
                self.entries, self.metadata = _read_header(path, header, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def close(self) -> None:
        """Closes the file. Arrays that were read stay valid."""
        self._map.close()

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Casts `tensor[index]` into `out`, whose shape is that of the slice.

        It copies rows a few megabytes at a time and releases the mapped pages after each copy, so that resident memory
        grows by `out` and not by the file.
        """
        entry = self.entries[name]
        if not entry.shape:
            out[...] = self._rows(entry, 0, 1).reshape(())
            return
        start, stop, step = index[0].indices(entry.shape[0])
        if step != 1:
            raise ValueError(f"{name}: rows are read with step 1, not {step}")
        row_bytes = (entry.end - entry.begin) // max(entry.shape[0], 1)
        rows = max(1, _CHUNK_BYTES // max(row_bytes, 1))
        for low in range(start, stop, rows):
            high = min(low + rows, stop)
            source = self._rows(entry, low, high)[(slice(None), *index[1:])]
            np.copyto(out[low - start : high - start], source, casting="unsafe")
            del source
            self._release(entry.begin + low * row_bytes, entry.begin + high * row_bytes)

    def _rows(self, entry: TensorEntry, low: int, high: int) -> np.ndarray:
        """Returns a view of rows [low, high). It reads no bytes yet."""
        inner = entry.shape[1:]
        count = (high - low) * math.prod(inner)
        offset = entry.begin + low * math.prod(inner) * entry.dtype.itemsize
        if count == 0:
            return np.empty((high - low, *inner), entry.dtype)
        return np.frombuffer(self._map, entry.dtype, count, offset).reshape(high - low, *inner)

    def _release(self, begin: int, end: int) -> None:
        if end - begin < _RELEASE_BYTES:  # not worth a call that briefly stops every thread of the process
            return
        if not hasattr(mmap, "MADV_DONTNEED"):  # elsewhere than on Linux, the system drops clean pages itself
            return
        begin -= begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _read_header(path: Path, data: bytes, file_size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Returns the entries by name, and the texts of `__metadata__`."""
    try:
        header = json.loads(data, object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON ({error}); download the file again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a {type(header).__name__}, expected an object; download it again")
    texts = header.pop("__metadata__", None)
    base = 8 + len(data)
    entries = {name: _entry(path, name, item, base) for name, item in header.items()}
    _check_layout(path, entries, base, file_size)
    return entries, {str(key): str(text) for key, text in texts.items()} if isinstance(texts, dict) else {}


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _entry(path: Path, name: str, item: object, base: int) -> TensorEntry:
    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} has {what}; the file is damaged, download it again")

    if not isinstance(item, dict):
        raise bad(f"the description {item!r}, expected an object")
    dtype_name, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise bad(f"dtype {dtype_name!r}, expected one of {', '.join(_DTYPES)}")
    if not _are_sizes(shape):
        raise bad(f"shape {shape!r}, expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"data_offsets {offsets!r}, expected [begin, end]")
    dtype = _DTYPES[dtype_name]
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        raise bad(f"{offsets[1] - offsets[0]} bytes, but shape {shape} of {dtype_name} needs {needed}")
    return TensorEntry(
        name=name,
        dtype_name=dtype_name,
        dtype=dtype,
        shape=tuple(shape),
        begin=base + offsets[0],
        end=base + offsets[1],
    )


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _check_layout(path: Path, entries: Mapping[str, TensorEntry], base: int, file_size: int) -> None:
    """Checks that the tensors cover the bytes after the header exactly, without a gap, an overlap or a rest."""
    position = base
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor {entry.name!r} starts at byte {entry.begin}, expected {position}: it {kind}. "
                "The file is damaged; download it again."
            )
        position = entry.end
    if position != file_size:
        what = "truncated" if position > file_size else "longer than its header says"
        raise CheckpointError(
            f"{path}: {file_size} bytes, but the header describes {position}; the file is {what}. Download it again."
        )
