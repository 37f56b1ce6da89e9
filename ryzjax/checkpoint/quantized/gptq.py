"""GPTQ (AutoGPTQ, GPTQModel): a transposed matrix of words, with values packed along the in features.

qweight  int32 [K * bits / 32, N]      scales  float [groups, N]
qzeros   int32 [groups, N * bits / 32], packed along N; version 1 stores zero - 1, version 2 the zero itself
g_idx    int32 [K], the group of each in feature
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.scales import SCALE_DTYPES, scale_dtype
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.quantized.words import unpack_words
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat, pack_run

__all__ = ["GptqMatrix", "group_order"]


class GptqMatrix(StoredMatrix):
    """A GPTQ matrix of 4 or 8 bits.

    Args:
      file_of, base, names, shape: As for `StoredMatrix`.
      is_v2: Whether the config says version 2, which stores zeros without the offset. Labels can be wrong, so for
        symmetric weights the stored values decide: in 4 bits, all nibbles 8 mean version 2, all 7 mean version 1.
      is_symmetric: Whether the config says that the weights are symmetric.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match, or the matrix has other bits than 4 or 8.
    """

    def __init__(
        self,
        file_of: Mapping[str, TensorFile],
        base: str,
        names: tuple[str, ...],
        shape: tuple[int, int],
        *,
        is_v2: bool,
        is_symmetric: bool,
    ):
        super().__init__(file_of, base, names, shape)
        n, k = shape
        stored = self.entry("qweight").shape
        self.bits = next((bits for bits in (4, 8) if stored == (k * bits // 32, n)), 0)
        if not self.bits:
            raise self.error(
                "qweight",
                f"has shape {list(stored)}; expected {[k // 8, n]} for 4 bits or {[k // 4, n]} for 8. Other bits and "
                "planar packing are not supported; use the model in 4 or 8 bits.",
            )
        self.expect("qweight", [stored], ["I32"])
        groups = self.rows_of("scales")
        self.expect("scales", [(groups, n)], SCALE_DTYPES)
        self.expect("qzeros", [(groups, n * self.bits // 32)], ["I32"])
        if k % groups or (groups > 1 and (k // groups) % 2):
            raise self.error("scales", f"has {groups} groups, which do not divide {k} in features")
        group = None if groups == 1 else k // groups
        self.order = self._order(k, k // groups)
        self.offset, has_zeros = self._zeros(is_v2, is_symmetric)
        self.format = QFormat(
            kind="int4" if self.bits == 4 else "int8",
            group=group,
            pack=pack_run(k, group) if self.bits == 4 else 0,
            scale_dtype=scale_dtype(self.entry("scales")),
            has_zeros=has_zeros,
            has_order=self.order is not None,
        )

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        per_word = 32 // self.bits
        if self.order is None:
            low, high, _ = columns.indices(self.shape[1])
            first = low // per_word
            words = self.read("qweight", slice(first, -(-high // per_word)), rows)
            q = unpack_words(words, self.bits, 0)[low - first * per_word : high - first * per_word]
        else:
            q = unpack_words(self.read("qweight", slice(None), rows), self.bits, 0)[self.order[columns]]
        return self._signed(np.ascontiguousarray(q.T))

    def leaf(self, name: str) -> np.ndarray:
        if name == "order":
            assert self.order is not None
            return self.order
        if name == "scales":
            return np.ascontiguousarray(self.read("scales").T)
        assert name == "zeros", name
        return self._signed(np.ascontiguousarray(self._stored_zeros(self.offset).T))

    def _signed(self, q: np.ndarray) -> np.ndarray:
        """Converts 8-bit values, which are stored from 0 to 255, to int8."""
        return q if self.bits == 4 else (q ^ 0x80).view(np.int8)

    def _stored_zeros(self, offset: int) -> np.ndarray:
        # Version 1 stores a zero of 0 as -1, which wraps around.
        return (unpack_words(self.read("qzeros"), self.bits, 1) + np.uint8(offset)) & np.uint8(2**self.bits - 1)

    def _zeros(self, is_v2: bool, is_symmetric: bool) -> tuple[int, bool]:
        """Returns (the offset to add to stored zeros, whether the QArray needs zeros)."""
        middle = 2 ** (self.bits - 1)
        stored = self._stored_zeros(0)
        if is_symmetric and np.all(stored == middle):
            return 0, False
        if is_symmetric and np.all(stored == middle - 1):
            return 1, False
        return (0 if is_v2 else 1), True

    def _order(self, k: int, group: int) -> np.ndarray | None:
        if f"{self.base}.g_idx" not in self.file_of:
            return None
        self.expect("g_idx", [(k,)], ["I32", "I64"])
        order, problem = group_order(self.read("g_idx"), group)
        if problem:
            raise self.error("g_idx", problem)
        return order


def group_order(group_of: np.ndarray, group: int) -> tuple[np.ndarray | None, str | None]:
    """Finds the permutation that puts the columns of each group side by side (act-order).

    Args:
      group_of: The group of each column, int [K].
      group: Columns in each group.

    Returns:
      (permutation, problem). The permutation is int32 [K], or None if the columns are in order already. The problem
      completes an error message, and is None if there is none.
    """
    plain = np.arange(len(group_of)) // group
    if np.array_equal(group_of, plain):
        return None, None
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    if not np.array_equal(group_of[order], plain):
        return None, f"does not give every group {group} in features; the file is damaged, download it again"
    return order, None
