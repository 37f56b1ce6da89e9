"""Q8_0 and Q4_0 tensors of GGUF files. Both map directly to a QArray: 32 columns share one float16 scale.

Other kinds (Q4_K, Q6_K, ...) have quantized scales, or values that straddle bytes. They are dequantized while loading.
"""

from __future__ import annotations

import numpy as np

from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.qarray import QFormat, unpack_nibbles

__all__ = ["GgufMatrix"]

_GROUP = 32
_FORMATS = {
    "Q8_0": QFormat(kind="int8", group=_GROUP, scale_dtype="float16"),
    "Q4_0": QFormat(kind="int4", group=_GROUP, pack=_GROUP, scale_dtype="float16"),
}


class GgufMatrix(StoredMatrix):
    """A Q8_0 or Q4_0 tensor. `GgufFile.block_kinds` says which tensors are of these kinds.

    Args:
      file: The open file.
      name: Name of the tensor.
      shape: (N, K) of the model's layer.
    """

    def __init__(self, file: GgufFile, name: str, shape: tuple[int, int]):
        super().__init__({name: file}, name, (name,), shape)
        self.file = file
        self.format = _FORMATS[file.block_kinds[name]]

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        blocks = self._blocks(rows)
        values = blocks[:, :, 2:].reshape(len(blocks), -1)
        q = values.view(np.int8) if self.format.kind == "int8" else unpack_nibbles(values, _GROUP)
        return q[:, columns]

    def leaf(self, name: str) -> np.ndarray:
        assert name == "scales", name
        return np.ascontiguousarray(self._blocks(slice(None))[:, :, :2]).view(np.float16)[:, :, 0]

    def _blocks(self, rows: slice) -> np.ndarray:
        raw = self.file.raw_rows(self.base, rows)
        return raw.reshape(len(raw), self.shape[1] // _GROUP, -1)
