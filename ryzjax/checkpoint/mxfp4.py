"""Reads MXFP4 weights (OCP Microscaling Formats 1.0): groups of 32 four-bit floats that share a power of two.

GPT-OSS's files store a matrix [..., out, in] as two tensors. `<name>_blocks`, uint8 [..., out, in / 32, 16], has two
values per byte, the first in the low bits. `<name>_scales`, uint8 [..., out, in / 32], has exponents with bias 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError

__all__ = ["Mxfp4Rows", "dequantize_mxfp4"]

_GROUP = 32
_EXPONENT_BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)
_PAIRS = np.stack([_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=1)
"""The two values of each byte, [256, 2]."""


def dequantize_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Dequantizes blocks, uint8 [..., in / 32, 16], with scales, uint8 [..., in / 32], to float32 [..., in]."""
    values = _PAIRS[blocks].reshape(*scales.shape, _GROUP)
    values = np.ldexp(values, scales.astype(np.int32)[..., None] - _EXPONENT_BIAS)
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * _GROUP)


@dataclass(frozen=True)
class Mxfp4Rows:
    """A `StoredWeight` [experts, out, in] of some rows of MXFP4 tensors, dequantized when it is read.

    Attributes:
      name: Name of the two tensors, without `_blocks` and `_scales`.
      rows: The stored rows that belong to the weight, as a slice with positive step.
      dtypes: Dtypes that the file may store the tensors in.
    """

    name: str
    rows: slice
    dtypes: tuple[str, ...] = ("U8",)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the two tensors: blocks, then scales."""
        return (f"{self.name}_blocks", f"{self.name}_scales")

    def shape(self, entries: Mapping[str, TensorEntry]) -> tuple[int, ...]:
        """[experts, out, in] of the selected rows."""
        blocks, scales = (entries[name].shape for name in self.names)
        if blocks != (*scales, _GROUP // 2):
            raise CheckpointError(
                f"tensor {self.names[0]!r} has shape {list(blocks)}; expected {[*scales, _GROUP // 2]}, to go with the "
                f"{list(scales)} scales of {self.names[1]!r}. The file is damaged."
            )
        *outer, rows, groups = scales
        return (*outer, len(range(*self.rows.indices(rows))), groups * _GROUP)

    def read(self, files: Mapping[str, TensorFile], index: tuple[slice, ...], out: np.ndarray) -> None:
        """Casts the dequantized `weight[index]` into `out`, whose shape is that of the slice.

        It reads one expert at a time, and whole rows even if `index` asks for a part of them.
        """
        blocks, scales = (files[name] for name in self.names)
        _, num_rows, groups = scales.entries[self.names[1]].shape
        rows = range(*self.rows.indices(num_rows))
        low, high, _ = index[1].indices(len(rows))
        part = slice(rows.start + low * rows.step, rows.start + high * rows.step, rows.step)
        first, last, _ = index[0].indices(scales.entries[self.names[1]].shape[0])
        raw = np.empty((1, high - low, groups, 16), np.uint8)
        exponents = np.empty((1, high - low, groups), np.uint8)
        everything = slice(None)
        for i, expert in enumerate(range(first, last)):
            here = slice(expert, expert + 1)
            blocks.read(self.names[0], (here, part, everything, everything), raw)
            scales.read(self.names[1], (here, part, everything), exponents)
            np.copyto(out[i], dequantize_mxfp4(raw[0], exponents[0])[:, index[2]], casting="unsafe")
