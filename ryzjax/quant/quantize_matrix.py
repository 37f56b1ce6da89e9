"""Quantizes one matrix to nearest in a given format: what `--weights int8 | int4 | nf4` does while loading.

On a CPU the native kernel quantizes panels of rows on all cores. XLA quantizes where there is no kernel, and on other
devices. The two may choose differently only between levels or int4 scales whose errors are equal but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.qarray import QArray, QFormat
from ryzjax.quant.encode_matrix import check_weights, not_finite
from ryzjax.quant.grid import nearest_levels, search_grid
from ryzjax.quant.nf4 import nearest_nf4, nf4_array
from ryzjax.quant.quantized_rows import PANEL_WEIGHTS, QuantizedRows

__all__ = ["quantize_matrix"]


def quantize_matrix(name: str, w: Float[Array, "N K"], format: QFormat) -> QArray:
    """Rounds a matrix to the nearest values of a format.

    In int4, the scale of each group is searched for the least squared error. In int8 and NF4 it covers the group's
    whole range.

    Args:
      name: Name of the weight, for error messages.
      w: The matrix, [N, K].
      format: int8 or int4 without zeros and with bfloat16 scales, or NF4.

    Raises:
      ConfigError: The matrix has NaN or infinite weights.
    """
    is_on_cpu = all(device.platform == "cpu" for device in w.devices())
    if is_on_cpu and QuantizedRows.refusal(w.dtype, format) is None:
        return _quantize_natively(name, np.ascontiguousarray(w), format)
    check_weights(name, w)
    group = format.group or w.shape[1]
    if format.kind == "float4":
        return nf4_array(*_by_panels(partial(nearest_nf4, block=group), w))
    q, scales = _by_panels(partial(_quantize_panel, bits=4 if format.pack else 8, group=group), w)
    return EncodedMatrix(format=format, q=(q + 8).astype(np.uint8) if format.pack else q, scales=scales).qarray()


def _quantize_natively(name: str, w: np.ndarray, format: QFormat) -> QArray:
    n, k = w.shape
    quantized = QuantizedRows((n, k), format)
    panels = QuantizedRows.panels(w.shape)
    with ThreadPoolExecutor(min(len(panels), os.cpu_count() or 1), thread_name_prefix="quantize") as pool:
        count = sum(pool.map(lambda rows: quantized.fill(rows, w[rows]), panels))
    if count:
        raise not_finite(name, count)
    return QArray(format=format, **{leaf: jnp.asarray(part) for leaf, part in quantized.leaves().items()})


def _by_panels(fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]], w: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Applies `fn` to [N, K] a panel of rows at a time. Returns its two results [N, ...] on the host."""
    rows = w.shape[0]
    panel = min(rows, max(1, PANEL_WEIGHTS // w.shape[1]))
    padded = jnp.pad(w, ((0, -rows % panel), (0, 0)))  # one shape, one program
    parts = [fn(padded[first : first + panel]) for first in range(0, rows, panel)]
    first, second = (np.concatenate([np.asarray(part) for part in each])[:rows] for each in zip(*parts, strict=True))
    return first, second


@partial(jax.jit, static_argnames=("bits", "group"))
def _quantize_panel(w: jax.Array, bits: int, group: int) -> tuple[jax.Array, jax.Array]:
    """Returns int8 q [N, K] and bfloat16 scales [N, K / group]."""
    rows, k = w.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = w.astype(jnp.float32).reshape(rows, -1, group)
    grid = search_grid(
        groups,
        jnp.ones((k // group, group)),
        low=low,
        high=high,
        symmetric=True,
        scale_dtype="bfloat16",
        search=bits == 4,  # 8 bits gain nothing by clipping
    )
    q = nearest_levels(groups, grid, low, high).reshape(rows, k).astype(jnp.int8)
    return q, grid.scale.astype(jnp.bfloat16)
