"""Quantizes rows to int8, int4 or NF4 by the native kernel. src/quantize.h states its contract.

The kernel is a plain C function that works on NumPy arrays and runs on the calling thread, without the GIL. XLA is not
involved: no program is compiled for a shape, and the caller decides how many rows each of its threads quantizes.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ryzjax.native.library import native_refusal, quantize_function
from ryzjax.qarray import QFormat

__all__ = ["native_quantize", "native_quantize_refusal"]

_DTYPES = {jnp.dtype(jnp.float32): 0, jnp.dtype(jnp.bfloat16): 1, jnp.dtype(jnp.float16): 2}
_KINDS = {"int8": 0, "int4": 1, "float4": 2}
_SCALE_DTYPES = {"int8": "bfloat16", "int4": "bfloat16", "float4": "nested"}


def native_quantize_refusal(dtype: jnp.dtype, format: QFormat) -> str | None:
    """Returns why the kernel cannot quantize weights of a dtype to a format, or None if it can."""
    if dtype not in _DTYPES:
        return f"weights are {dtype}, not float32, bfloat16 or float16"
    if format.scale_dtype != _SCALE_DTYPES.get(format.kind):
        return f"the kernel has no {format.kind} with {format.scale_dtype} scales"
    if format.has_zeros or format.has_order or format.rows != 1:
        return "the kernel has no zero points, no permuted columns, and no scales of several rows"
    return native_refusal()


def native_quantize(
    w: np.ndarray, format: QFormat, *, table: np.ndarray, values: np.ndarray, scales: np.ndarray
) -> int:
    """Quantizes rows, and writes them to `values` and `scales`.

    Args:
      w: The rows, C-contiguous [N, K].
      format: int8 or int4 with bfloat16 scales, or NF4.
      table: float32. For int4, the positive factors of the scale to try; for NF4, the 15 bounds between its values; for
        int8, empty.
      values: The packed values to fill, in the shape and dtype of the format's leaf.
      scales: The scales to fill, [N, K / group]: the bits of bfloat16 as uint16, or for NF4 the largest magnitudes as
        float32, before they are quantized.

    Returns:
      The number of weights that are NaN or infinite. If it is not 0, the rows that have them are not written.

    Raises:
      ValueError: The kernel does not take the dtype, format or shapes.
    """
    reason = native_quantize_refusal(w.dtype, format) or _wrong_arrays(w, format, table, values, scales)
    if reason is not None:
        raise ValueError(f"native_quantize: {reason}")
    group = format.group or w.shape[1]
    count = quantize_function()(
        *w.shape,
        _DTYPES[w.dtype],
        w.ctypes.data,
        _KINDS[format.kind],
        group,
        format.pack,
        table.ctypes.data,
        table.size,
        values.ctypes.data,
        scales.ctypes.data,
    )
    if count < 0:
        raise ValueError(f"native_quantize: w is {w.shape}, and the table has {table.size} numbers, for {format}")
    return count


def _wrong_arrays(
    w: np.ndarray, format: QFormat, table: np.ndarray, values: np.ndarray, scales: np.ndarray
) -> str | None:
    if w.ndim != 2 or 0 in w.shape or w.shape[1] % (format.group or w.shape[1]) or w.shape[1] % (format.pack or 1):
        return f"w is {w.shape}; expected [N, K] with K a multiple of group={format.group} and pack={format.pack}"
    stored = np.float32 if format.kind == "float4" else np.uint16
    n, k = w.shape
    columns, dtype = (k // 2, np.uint8) if format.pack else (k, np.int8)
    for name, array, shape, expected in (
        ("w", w, w.shape, w.dtype),
        ("table", table, table.shape, np.float32),
        ("values", values, (n, columns), dtype),
        ("scales", scales, format.scale_shape(w.shape), stored),
    ):
        if array.shape != shape or array.dtype != expected or not array.flags.c_contiguous:
            return f"{name} is {array.dtype} {array.shape}; expected contiguous {np.dtype(expected)} {shape}"
    return None
