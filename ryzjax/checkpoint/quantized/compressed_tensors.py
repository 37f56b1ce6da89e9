"""compressed-tensors (llm-compressor, vLLM; and what we write).

pack-quantized   weight_packed int32 [N, K * bits / 32], values plus half the range
                 weight_scale [N, groups], weight_zero_point int32 [N * bits / 32, groups], weight_g_idx [K]
int-quantized    weight int8 [N, K], weight_scale [N, groups or 1], weight_zero_point int8
float-quantized  weight float8 [N, K], weight_scale per tensor, row, group, or 128 x 128 block
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.gptq import group_order
from ryzjax.checkpoint.quantized.matrix import StoredMatrix
from ryzjax.checkpoint.quantized.scales import SCALE_DTYPES, scale_dtype
from ryzjax.checkpoint.quantized.words import unpack_words
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat, pack_run

__all__ = ["IntMatrix", "PackedMatrix"]


class PackedMatrix(StoredMatrix):
    """pack-quantized, 4 or 8 bits.

    Raises:
      CheckpointError: tensors that do not fit each other, or other bits.
    """

    def __init__(self, home: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        super().__init__(home, base, names, shape)
        n, k = shape
        stored = self.entry("weight_packed").shape
        self.bits = next((bits for bits in (4, 8) if stored == (n, -(-k * bits // 32))), 0)
        if not self.bits:
            raise self.error(
                "weight_packed",
                f"has shape {list(stored)}; expected {[n, -(-k // 8)]} for 4 bits or {[n, -(-k // 4)]} for 8. Other "
                "bits are not supported; take the model in 4 or 8 bits.",
            )
        self.expect("weight_packed", [stored], ["I32"])
        group = _group(self, k)
        self.order = None
        if f"{base}.weight_g_idx" in home:
            self.expect("weight_g_idx", [(k,)], ["I32", "I64"])
            self.order, problem = group_order(self.read("weight_g_idx"), group or k)
            if problem:
                raise self.error("weight_g_idx", problem)
        has_zeros = f"{base}.weight_zero_point" in home
        if has_zeros:
            groups = self.entry("weight_scale").shape[1]
            self.expect("weight_zero_point", [(-(-n * self.bits // 32), groups)], ["I32"])
        self.format = QFormat(
            kind="int4" if self.bits == 4 else "int8",
            group=group,
            pack=pack_run(k, group) if self.bits == 4 else 0,
            scale_dtype=scale_dtype(self.entry("weight_scale")),
            has_zeros=has_zeros,
            has_order=self.order is not None,
        )

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """See `StoredMatrix`."""
        per_word = 32 // self.bits
        low, high, _ = columns.indices(self.shape[1])
        if self.order is None:
            first = low // per_word
            words = self.read("weight_packed", rows, slice(first, -(-high // per_word)))
            q = unpack_words(words, self.bits, 1)[:, low - first * per_word : high - first * per_word]
        else:
            q = unpack_words(self.read("weight_packed", rows), self.bits, 1)[:, self.order[low:high]]
        return self._signed(q)

    def leaf(self, name: str) -> np.ndarray:
        """See `StoredMatrix`."""
        if name == "order":
            assert self.order is not None
            return self.order
        if name == "scales":
            return self.read("weight_scale")
        assert name == "zeros", name
        return self._signed(unpack_words(self.read("weight_zero_point"), self.bits, 0)[: self.shape[0]])

    def _signed(self, q: np.ndarray) -> np.ndarray:
        return q if self.bits == 4 else (q ^ 0x80).view(np.int8)


class IntMatrix(StoredMatrix):
    """int-quantized and float-quantized: one value an element.

    Args:
      scale: suffix of the scales' name: "weight_scale", or "weight_scale_inv" of Hugging Face's own fp8, which is
        multiplied with all the same.
      block: (rows, columns) that share a scale in 128 x 128 blocks, where the config says so.
      int8_activations: whether the config has activations rounded to int8 by token.

    Raises:
      CheckpointError: tensors that do not fit each other.
    """

    def __init__(
        self,
        home: Mapping[str, TensorFile],
        base: str,
        names: tuple[str, ...],
        shape: tuple[int, int],
        *,
        scale: str = "weight_scale",
        block: tuple[int, int] | None = None,
        int8_activations: bool = False,
    ):
        super().__init__(home, base, names, shape)
        n, k = shape
        self.scale = scale
        is_float = self.expect("weight", [shape], ["I8", "F8_E4M3"]).dtype_name == "F8_E4M3"
        blocks = (-(-n // block[0]), -(-k // block[1])) if block else None
        stored = self.entry(scale).shape if f"{base}.{scale}" in home else ()
        rows: int | None = 1
        group: int | None = None
        if blocks is not None and stored == blocks:
            assert block is not None
            rows, group = block
        elif stored in ((), (1,), (1, 1)) and n > 1:
            rows = None
        else:
            group = _group(self, k, scale, ([blocks] if blocks else []))
        self.expect(scale, [stored], SCALE_DTYPES)
        self.has_zeros = f"{base}.weight_zero_point" in home and not is_float
        if self.has_zeros:
            self.expect("weight_zero_point", [stored], ["I8"])
        # The format multiplies in int8 with one scale a row only; elsewhere activations stay as they are.
        self.ignores_activations = int8_activations and (is_float or group is not None or rows != 1 or self.has_zeros)
        self.format = QFormat(
            kind="float8" if is_float else "int8",
            group=group,
            rows=rows,
            scale_dtype=scale_dtype(self.entry(scale)),
            has_zeros=self.has_zeros,
            activations="int8" if int8_activations and not self.ignores_activations else None,
        )

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        """See `StoredMatrix`."""
        q = self.read("weight", rows, columns)
        return q.view(np.uint8) if self.format.kind == "float8" else q

    def leaf(self, name: str) -> np.ndarray:
        """See `StoredMatrix`."""
        stored = self.read(self.scale if name == "scales" else "weight_zero_point")
        return stored.reshape(self.format.scale_shape(self.shape))


def _group(
    matrix: StoredMatrix, k: int, scale: str = "weight_scale", also: list[tuple[int, ...]] | None = None
) -> int | None:
    """Columns a scale covers, from the shape of the scales [N, groups]; None for all."""
    n = matrix.shape[0]
    stored = matrix.entry(scale).shape if f"{matrix.base}.{scale}" in matrix.home else ()
    groups = stored[1] if len(stored) == 2 else 1
    fits = [(n, groups)] if groups and k % groups == 0 else [(n, 1)]
    matrix.expect(scale, [*fits, (n,)] if groups == 1 else [*fits, *(also or [])], SCALE_DTYPES)
    return None if groups == 1 else k // groups
