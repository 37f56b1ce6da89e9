"""A quantized tensor of a GGUF file as the leaves of a QArray. `gguf_blocks` knows the kinds of blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.checkpoint.quantized.gguf_blocks import BLOCK_KINDS, is_flat, stored_scales, zero_points
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.qarray import unpack_nibbles

__all__ = ["GgufMatrix"]

_CHUNK_BYTES = 256 << 10
"""Bytes of the file that are decoded at a time, so that the intermediate arrays stay in a core's cache."""
_ALL = slice(None)


class GgufMatrix(StoredMatrix):
    """A matrix of blocks of one of the `BLOCK_KINDS`.

    Args:
      file: The open file. `GgufFile.block_kinds` says which tensors have blocks.
      name: Name of the tensor.
      shape: (N, K) of the model's layer.
    """

    def __init__(self, file: GgufFile, name: str, shape: tuple[int, int]):
        super().__init__({name: file}, name, (name,), shape)
        self.file = file
        self.kind = BLOCK_KINDS[file.block_kinds[name]]
        self.format = self.kind.format

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        values = self.values(rows, _ALL)
        return (unpack_nibbles(values, self.format.pack) if self.format.pack else values)[:, columns]

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        n, k = self.shape
        per_byte = 2 if self.format.pack else 1
        out = np.empty((len(range(*rows.indices(n))), k // per_byte), np.uint8 if self.format.pack else np.int8)
        for part, blocks in self._chunks(rows):
            values = self.kind.values(blocks)
            with np.errstate(invalid="ignore"):
                scale, offset = self.kind.scales(blocks) if self.format.has_zeros else (None, None)
            if scale is not None and offset is not None and (flat := is_flat(scale, offset)).any():
                values = values.copy().reshape(*flat.shape, -1)
                values[flat] = 0
            out[part] = values.reshape(-1, out.shape[1])
        first, last, _ = columns.indices(k)
        return out[:, first // per_byte : last // per_byte]

    def leaf(self, name: str) -> np.ndarray:
        if name == "codebook":
            return np.array(self.kind.codebook, np.float32)
        n, k = self.shape
        out = np.empty((n, k // (self.format.group or k)), np.float16)
        with np.errstate(over="ignore", invalid="ignore"):  # `QuantizedLeaf` refuses leaves that are not finite.
            for part, blocks in self._chunks(_ALL):
                scale, offset = self.kind.scales(blocks)
                if name == "zeros" and offset is not None:
                    leaf = zero_points(scale, offset)
                else:
                    leaf = stored_scales(scale, offset)
                out[part] = leaf.reshape(-1, out.shape[1])
        return out

    def dequantized(self, rows: slice) -> np.ndarray:
        """Dequantizes some rows to float32 [rows, K], exactly: without the rounding of scales and zero points."""
        out = np.empty((len(range(*rows.indices(self.shape[0]))), self.shape[1]), np.float32)
        self.file.read(self.base, (rows, _ALL), out)
        return out

    def _chunks(self, rows: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the blocks of some rows a few rows at a time, uint8 [blocks, bytes], and their place in `rows`."""
        wanted = range(*rows.indices(self.shape[0]))
        blocks_of_row = self.shape[1] // self.kind.columns
        row_bytes = self.file.raw_rows(self.base, slice(0, 1)).shape[1]
        step = max(1, _CHUNK_BYTES // row_bytes)
        for first in range(0, len(wanted), step):
            part = wanted[first : first + step]
            raw = self.file.raw_rows(self.base, slice(part.start, part.stop, part.step))
            yield slice(first, first + len(part)), np.asarray(raw).reshape(len(part) * blocks_of_row, -1)
