"""Quantizes one matrix to nearest in a given format: what `--weights int8 | int4 | nf4` does while loading."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.qarray import QArray, QFormat
from ryzjax.quant.encode_matrix import check_weights
from ryzjax.quant.grid import nearest_levels, search_grid
from ryzjax.quant.nf4 import nearest_nf4, nf4_array

__all__ = ["quantize_matrix"]

_PANEL_WEIGHTS = 2**20
"""Weights quantized at a time. The search reads them many times over, so a panel should stay in the CPU's cache."""


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
    check_weights(name, w)
    group = format.group or w.shape[1]
    if format.kind == "float4":
        return nf4_array(*_by_panels(partial(nearest_nf4, block=group), w))
    q, scales = _by_panels(partial(_quantize_panel, bits=4 if format.pack else 8, group=group), w)
    return EncodedMatrix(format=format, q=(q + 8).astype(np.uint8) if format.pack else q, scales=scales).qarray()


def _by_panels(fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]], w: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Applies `fn` to [N, K] a panel of rows at a time. Returns its two results [N, ...] on the host."""
    rows = w.shape[0]
    panel = min(rows, max(1, _PANEL_WEIGHTS // w.shape[1]))
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
