"""QuantizedRows: a matrix that is quantized by the native kernel, some rows at a time, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from ryzjax.native.quantize import native_quantize, native_quantize_refusal
from ryzjax.qarray import QFormat
from ryzjax.quant.grid import SHRINKS
from ryzjax.quant.nf4 import NF4_BOUNDS, nf4_leaves

__all__ = ["PANEL_WEIGHTS", "QuantizedRows"]

PANEL_WEIGHTS = 2**20
"""Weights to quantize at a time: enough for a thread to work some milliseconds, few enough for the CPU's caches."""

_NO_TABLE = np.zeros(0, np.float32)


class QuantizedRows:
    """The quantized form of a matrix [N, K], filled by `fill`. The rows may be filled in any order, by any thread."""

    def __init__(
        self,
        shape: tuple[int, int],
        format: QFormat,
        empty: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
    ) -> None:
        """Allocates the arrays.

        Args:
          shape: [N, K].
          format: int8 or int4 without zeros and with bfloat16 scales, or NF4.
          empty: Allocates an array from its shape and dtype.
        """
        leaves = format.leaf_shapes(shape)
        scales_shape, scales_dtype = leaves["scales"]
        self._format = format
        self._is_nf4 = format.kind == "float4"
        self._table = NF4_BOUNDS if self._is_nf4 else SHRINKS if format.kind == "int4" else _NO_TABLE
        self._values = empty(*leaves["values"])
        self._scales = empty(scales_shape, np.dtype(np.float32) if self._is_nf4 else scales_dtype)

    @staticmethod
    def refusal(dtype: jnp.dtype, format: QFormat) -> str | None:
        """Returns why weights of a dtype cannot be quantized to a format here, or None if they can."""
        return native_quantize_refusal(dtype, format)

    @staticmethod
    def panels(shape: tuple[int, ...]) -> list[slice]:
        """Returns the rows of a matrix [N, K] in slices of about `PANEL_WEIGHTS` weights."""
        rows = max(1, PANEL_WEIGHTS // shape[1])
        return [slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]

    def fill(self, rows: slice, w: np.ndarray) -> int:
        """Quantizes some rows.

        Args:
          rows: Their place in the matrix.
          w: The rows, [rows, K].

        Returns:
          The number of weights that are NaN or infinite. The matrix is not usable if there are any.
        """
        return native_quantize(w, self._format, table=self._table, values=self._values[rows], scales=self._scales[rows])

    def leaves(self) -> dict[str, np.ndarray]:
        """Returns the leaves of the QArray, once all rows are filled."""
        if self._is_nf4:
            return nf4_leaves(self._values, self._scales)
        return {"values": self._values, "scales": self._scales}
