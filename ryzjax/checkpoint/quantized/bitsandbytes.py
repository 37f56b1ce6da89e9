"""bitsandbytes: NF4 and FP4 in blocks of the flattened matrix, optionally with quantized scales, and LLM.int8().

NF4 and FP4:
    weight                     uint8 [N * K / 2, 1], row after row; of two elements, the even one is in the high nibble
    weight.absmax              float32 [N * K / block], or uint8 codes where scales are nested
    weight.quant_map           float32 [16]
    weight.nested_absmax       float32 [blocks / 256]         weight.nested_quant_map  float32 [256]
    weight.quant_state.bitsandbytes__nf4                      JSON as bytes: blocksize, shape, nested_offset, ...

LLM.int8():
    weight  int8 [N, K]        SCB  float32 [N], the largest magnitude of each row
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.qarray import QFormat

__all__ = ["Bnb4Matrix", "Bnb8Matrix"]

_STATE = "weight.quant_state.bitsandbytes__"
_NESTED_BLOCK = 256


class Bnb4Matrix(StoredMatrix):
    """An NF4 or FP4 matrix. It can stay quantized only if each row is a whole number of blocks.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match, or the quantization state is damaged.
    """

    def __init__(self, file_of: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        super().__init__(file_of, base, names, shape)
        n, k = shape
        state = self._state()
        block = state.get("blocksize")
        if not isinstance(block, int) or block < 2 or block & (block - 1):
            raise self.error("weight", f"has a blocksize of {block!r}; expected a power of two")
        if tuple(state.get("shape", ())) != shape:  # pyright: ignore
            raise self.error("weight", f"is a matrix of {state.get('shape')}; expected {list(shape)} by config.json")
        self.expect("weight", [(-(-n * k // 2), 1)], ["U8"])
        blocks = -(-n * k // block)
        self.expect("weight.quant_map", [(16,)], ["F32"])
        self.is_nested = f"{base}.weight.nested_absmax" in file_of
        self.expect("weight.absmax", [(blocks,)], ["U8"] if self.is_nested else ["F32"])
        self.offset = np.float32(0)
        if self.is_nested:
            if state.get("nested_blocksize") != _NESTED_BLOCK:
                raise self.error(
                    "weight.nested_absmax", f"has a blocksize of {state.get('nested_blocksize')}; expected 256"
                )
            self.expect("weight.nested_absmax", [(-(-blocks // _NESTED_BLOCK),)], ["F32"])
            self.expect("weight.nested_quant_map", [(256,)], ["F32"])
            self.offset = np.float32(state.get("nested_offset", 0.0))  # pyright: ignore
        self.block = block
        if k % block:
            self.float_reason = f"its rows of {k} are not whole blocks of {block}"
            block = k
        self.format = QFormat(
            kind="float4", group=block, pack=block, scale_dtype="nested" if self.is_nested else "float32"
        )

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        k = self.shape[1]
        low = first * k // 2
        packed = self.read("weight", slice(low, -(-last * k // 2)))[:, 0]
        q = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        q = q[first * k - 2 * low :][: (last - first) * k]
        return q.reshape(last - first, k)[:, columns]

    def leaf(self, name: str) -> np.ndarray:
        if name == "scale_offset":
            return np.asarray(self.offset)
        if name == "scales":
            return self.read("weight.absmax").reshape(self.format.scale_shape(self.shape))
        tensors = {"codebook": "quant_map", "scale_codes": "nested_quant_map", "scale_blocks": "nested_absmax"}
        return self.read(f"weight.{tensors[name]}")

    def dequantized(self, rows: slice) -> np.ndarray:
        """Dequantizes some rows, also where blocks cross rows."""
        if not self.float_reason:
            return super().dequantized(rows)
        absmax = self.read("weight.absmax")
        if self.is_nested:
            block = np.arange(absmax.size) // _NESTED_BLOCK
            absmax = self.leaf("scale_codes")[absmax] * self.leaf("scale_blocks")[block] + self.offset
        first, last, _ = rows.indices(self.shape[0])
        at = np.arange(first * self.shape[1], last * self.shape[1]) // self.block
        return self.leaf("codebook")[self.integers(rows, slice(None))] * absmax[at].reshape(last - first, -1)

    def _state(self) -> Mapping[str, object]:
        name = next((name for name in self.names if name.startswith(f"{self.base}.{_STATE}")), None)
        if name is None:
            raise self.error("weight", "has no quant_state beside it; export the checkpoint again with its quant_state")
        suffix = name.removeprefix(f"{self.base}.")
        try:
            state = json.loads(self.read(suffix).astype(np.uint8).tobytes())
        except ValueError as error:
            raise self.error(suffix, f"is not valid JSON ({error}); download it again") from error
        if not isinstance(state, dict):
            raise self.error(suffix, f"holds a {type(state).__name__}; expected an object")
        return state


class Bnb8Matrix(StoredMatrix):
    """An LLM.int8() matrix: int8 with one scale a row.

    Activations are not quantized. bitsandbytes multiplies outlier columns in 16 bits; this reader does not distinguish
    them from the others.

    Raises:
      CheckpointError: The shapes or dtypes of the tensors do not match.
    """

    def __init__(self, file_of: Mapping[str, TensorFile], base: str, names: tuple[str, ...], shape: tuple[int, int]):
        super().__init__(file_of, base, names, shape)
        self.expect("weight", [shape], ["I8"])
        self.expect("SCB", [shape[:1]], ["F32"])
        self.format = QFormat(kind="int8")

    def integers(self, rows: slice, columns: slice) -> np.ndarray:
        return self.read("weight", rows, columns)

    def leaf(self, name: str) -> np.ndarray:
        assert name == "scales", name
        return (self.read("SCB") * np.float32(1 / 127))[:, None]
