"""AWQ's GEMM layout (AutoAWQ): int4 values packed along the out features, interleaved within each word.

    qweight  int32 [K, N / 8]     qzeros  int32 [K / group, N / 8]     scales  float [K / group, N]

The per-channel scales of the AWQ method are already folded into the layer before, so a reader does not see them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.scales import SCALE_DTYPES, scale_dtype
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.quantized.words import unpack_words
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat, pack_run

__all__ = ["AwqMatrix"]

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word holds column `_ORDER[i]` of the word's eight columns."""


class AwqMatrix(StoredMatrix):
    """An AWQ matrix: int4 in groups, with zeros.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match.
    """

    def __init__(self, file_of: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        super().__init__(file_of, base, names, shape)
        n, k = shape
        self.expect("qweight", [(k, n // 8)], ["I32"])
        groups = self.rows_of("scales")
        self.expect("scales", [(groups, n)], SCALE_DTYPES)
        self.expect("qzeros", [(groups, n // 8)], ["I32"])
        if k % groups:
            raise self.error("scales", f"has {groups} groups, which do not divide {k} in features")
        group = None if groups == 1 else k // groups
        self.format = QFormat(
            kind="int4",
            group=group,
            pack=pack_run(k, group),
            scale_dtype=scale_dtype(self.entry("scales")),
            has_zeros=True,
        )

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        low, high, _ = rows.indices(self.shape[0])
        first = low // 8
        words = self.read("qweight", columns, slice(first, -(-high // 8)))
        q = unpack_words(words, 4, 1, _ORDER)[:, low - 8 * first : high - 8 * first]
        return np.ascontiguousarray(q.T)

    def leaf(self, name: str) -> np.ndarray:
        if name == "scales":
            return np.ascontiguousarray(self.read("scales").T)
        assert name == "zeros", name
        return np.ascontiguousarray(unpack_words(self.read("qzeros"), 4, 1, _ORDER).T)
