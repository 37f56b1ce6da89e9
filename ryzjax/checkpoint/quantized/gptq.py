"""GPTQ (AutoGPTQ, GPTQModel): values packed along the in features, one transposed matrix of words.

qweight  int32 [K * bits / 32, N]      scales  float [groups, N]
qzeros   int32 [groups, N * bits / 32], packed along N; version 1 stores zero - 1
g_idx    int32 [K], the group of each in feature
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.matrix import StoredMatrix
from ryzjax.checkpoint.quantized.scales import SCALE_DTYPES, scale_dtype
from ryzjax.checkpoint.quantized.words import unpack_words
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat, pack_run

__all__ = ["GptqMatrix", "group_order"]


class GptqMatrix(StoredMatrix):
    """See the module's docstring.

    Args:
      is_v2: whether the config says that zeros are stored as they are. For symmetric weights the values decide: 8 in
        every nibble is version 2 whatever the label says, 7 is version 1.
      is_symmetric: what the config says.

    Raises:
      CheckpointError: tensors that do not fit each other, or bits other than 4 and 8.
    """

    def __init__(
        self,
        home: Mapping[str, TensorFile],
        base: str,
        names: tuple[str, ...],
        shape: tuple[int, int],
        *,
        is_v2: bool,
        is_symmetric: bool,
    ):
        super().__init__(home, base, names, shape)
        n, k = shape
        stored = self.entry("qweight").shape
        self.bits = next((bits for bits in (4, 8) if stored == (k * bits // 32, n)), 0)
        if not self.bits:
            raise self.error(
                "qweight",
                f"has shape {list(stored)}; expected {[k // 8, n]} for 4 bits or {[k // 4, n]} for 8. Other bits and "
                "planar packing are not supported; take the model in 4 or 8 bits.",
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
        """See `StoredMatrix`."""
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
        """See `StoredMatrix`."""
        if name == "order":
            assert self.order is not None
            return self.order
        if name == "scales":
            return np.ascontiguousarray(self.read("scales").T)
        assert name == "zeros", name
        return self._signed(np.ascontiguousarray(self._stored_zeros(self.offset).T))

    def _signed(self, q: np.ndarray) -> np.ndarray:
        """8-bit values are stored from 0 to 255, with the zero point among them."""
        return q if self.bits == 4 else (q ^ 0x80).view(np.int8)

    def _stored_zeros(self, offset: int) -> np.ndarray:
        # A zero of 0 is stored as -1 in version 1: it wraps around.
        return (unpack_words(self.read("qzeros"), self.bits, 1) + np.uint8(offset)) & np.uint8(2**self.bits - 1)

    def _zeros(self, is_v2: bool, is_symmetric: bool) -> tuple[int, bool]:
        """(what to add to stored zeros, whether they differ from the middle of the range)."""
        middle = 2 ** (self.bits - 1)
        stored = self._stored_zeros(0)
        if is_symmetric and np.all(stored == middle):
            return 0, False
        if is_symmetric and np.all(stored == middle - 1):
            return 1, False
        return (0 if is_v2 else 1), True

    def _order(self, k: int, group: int) -> np.ndarray | None:
        if f"{self.base}.g_idx" not in self.home:
            return None
        self.expect("g_idx", [(k,)], ["I32", "I64"])
        order, problem = group_order(self.read("g_idx"), group)
        if problem:
            raise self.error("g_idx", problem)
        return order


def group_order(group_of: np.ndarray, group: int) -> tuple[np.ndarray | None, str | None]:
    """(permutation that puts the columns of a group side by side, or None where they are; or what is wrong).

    Args:
      group_of: int [K], the group of each column.
      group: columns of each.
    """
    plain = np.arange(len(group_of)) // group
    if np.array_equal(group_of, plain):
        return None, None
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    if not np.array_equal(group_of[order], plain):
        return None, f"does not give every group {group} in features; the file is damaged, download it again"
    return order, None
