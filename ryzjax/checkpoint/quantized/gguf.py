"""Q8_0 and Q4_0 blocks of GGUF files, which have a QArray's layout: 32 columns with a float16 scale each.

Other kinds (Q4_K, Q6_K, ...) have scales of scales, or bits that straddle bytes: they are dequantized.
"""

from __future__ import annotations

import numpy as np

from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.checkpoint.quantized.matrix import StoredMatrix
from ryzjax.qarray import QFormat, unpack_nibbles

__all__ = ["GgufMatrix"]

_GROUP = 32
_FORMATS = {
    "Q8_0": QFormat(kind="int8", group=_GROUP, scale_dtype="float16"),
    "Q4_0": QFormat(kind="int4", group=_GROUP, pack=_GROUP, scale_dtype="float16"),
}


class GgufMatrix(StoredMatrix):
    """A tensor of one of the two kinds; `file.block_kind` says which tensors are."""

    def __init__(self, file: GgufFile, name: str, shape: tuple[int, int]):
        super().__init__({name: file}, name, (name,), shape)
        self.file = file
        self.format = _FORMATS[file.block_kinds[name]]

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """See `StoredMatrix`."""
        blocks = self._blocks(rows)
        values = blocks[:, :, 2:].reshape(len(blocks), -1)
        q = values.view(np.int8) if self.format.kind == "int8" else unpack_nibbles(values, _GROUP)
        return q[:, columns]

    def leaf(self, name: str) -> np.ndarray:
        """See `StoredMatrix`."""
        assert name == "scales", name
        return np.ascontiguousarray(self._blocks(slice(None))[:, :, :2]).view(np.float16)[:, :, 0]

    def _blocks(self, rows: slice) -> np.ndarray:
        raw = self.file.raw_rows(self.base, rows)
        return raw.reshape(len(raw), self.shape[1] // _GROUP, -1)
