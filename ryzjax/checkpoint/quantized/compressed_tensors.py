"""compressed-tensors: the format of llm-compressor and vLLM, and the one that RyzJAX writes.

pack-quantized   weight_packed int32 [N, K * bits / 32], each value stored as q + 2^(bits - 1)
                 weight_scale [N, groups], weight_zero_point int32 [N * bits / 32, groups], weight_g_idx [K]
int-quantized    weight int8 [N, K], weight_scale [N, groups or 1], weight_zero_point int8
float-quantized  weight float8 [N, K], weight_scale per tensor, row, group, or 128 x 128 block
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.gptq import group_order
from ryzjax.checkpoint.quantized.scales import SCALE_DTYPES, scale_dtype
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.quantized.words import unpack_words
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat, pack_run

__all__ = ["IntMatrix", "PackedMatrix"]


class PackedMatrix(StoredMatrix):
    """A pack-quantized matrix of 4 or 8 bits.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match, or the matrix has other bits than 4 or 8.
    """

    def __init__(self, file_of: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        super().__init__(file_of, base, names, shape)
        n, k = shape
        stored = self.entry("weight_packed").shape
        self.bits = next((bits for bits in (4, 8) if stored == (n, -(-k * bits // 32))), 0)
        if not self.bits:
            raise self.error(
                "weight_packed",
                f"has shape {list(stored)}; expected {[n, -(-k // 8)]} for 4 bits or {[n, -(-k // 4)]} for 8. Other "
                "bits are not supported; use the model in 4 or 8 bits.",
            )
        self.expect("weight_packed", [stored], ["I32"])
        group = _group(self, k)
        self.order = None
        if f"{base}.weight_g_idx" in file_of:
            self.expect("weight_g_idx", [(k,)], ["I32", "I64"])
            self.order, problem = group_order(self.read("weight_g_idx"), group or k)
            if problem:
                raise self.error("weight_g_idx", problem)
        has_zeros = f"{base}.weight_zero_point" in file_of
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
    """An int-quantized or float-quantized matrix: one int8 or float8 per element, without packing.

    Args:
      file_of, base, names, shape: As for `StoredMatrix`.
      scale: The end of the name of the scales: "weight_scale", or "weight_scale_inv" in Hugging Face's own fp8 format.
        Despite its name, the latter is multiplied as well.
      block: The rows and columns that share a scale, where the config has blocks such as (128, 128).
      int8_activations: Whether the config quantizes activations to int8 per token.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match.
    """

    def __init__(
        self,
        file_of: Mapping[str, TensorFile],
        base: str,
        names: tuple[str, ...],
        shape: tuple[int, int],
        *,
        scale: str = "weight_scale",
        block: tuple[int, int] | None = None,
        int8_activations: bool = False,
    ):
        super().__init__(file_of, base, names, shape)
        n, k = shape
        self.scale = scale
        is_float = self.expect("weight", [shape], ["I8", "F8_E4M3"]).dtype_name == "F8_E4M3"
        blocks = (-(-n // block[0]), -(-k // block[1])) if block else None
        stored = self.entry(scale).shape if f"{base}.{scale}" in file_of else ()
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
        self.has_zeros = f"{base}.weight_zero_point" in file_of and not is_float
        if self.has_zeros:
            self.expect("weight_zero_point", [stored], ["I8"])
        # A QArray multiplies in int8 only with one scale a row. Otherwise activations are not quantized.
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
        q = self.read("weight", rows, columns)
        return q.view(np.uint8) if self.format.kind == "float8" else q

    def leaf(self, name: str) -> np.ndarray:
        stored = self.read(self.scale if name == "scales" else "weight_zero_point")
        return stored.reshape(self.format.scale_shape(self.shape))


def _group(
    matrix: StoredMatrix, k: int, scale: str = "weight_scale", also: list[tuple[int, ...]] | None = None
) -> int | None:
    """Returns the columns that share a scale, from the shape [N, groups] of the scales; None for all columns.

    Args:
      matrix: The matrix; its scales are checked.
      k: In features of the matrix.
      scale: The end of the name of the scales.
      also: Further shapes that the scales may have.
    """
    n = matrix.shape[0]
    stored = matrix.entry(scale).shape if f"{matrix.base}.{scale}" in matrix.file_of else ()
    groups = stored[1] if len(stored) == 2 else 1
    fits = [(n, groups)] if groups and k % groups == 0 else [(n, 1)]
    matrix.expect(scale, [*fits, (n,)] if groups == 1 else [*fits, *(also or [])], SCALE_DTYPES)
    return None if groups == 1 else k // groups
