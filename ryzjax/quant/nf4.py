"""NormalFloat4 with double quantization (QLoRA, arXiv:2305.14314). The values equal those of bitsandbytes.

Each block of columns is divided by its largest magnitude and rounded to the nearest of sixteen values, which are
equally likely for normally distributed weights. The magnitudes are quantized too: their mean is subtracted, and runs of
256 with one float32 scale each are rounded to the 8-bit dynamic code (arXiv:2110.02861).
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ryzjax.qarray import QArray, QFormat, pack_nibbles

__all__ = ["NF4_BOUNDS", "NF4_VALUES", "dynamic_code", "nearest_nf4", "nf4_array", "nf4_format", "nf4_leaves"]

NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""The value of each of the sixteen codes, relative to the block's largest magnitude (appendix E of the paper)."""

NF4_BOUNDS = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / 2
"""The bounds between neighboring values. The code of a number is how many bounds are less than it."""
_TINY = np.finfo(np.float32).tiny
"""Blocks with smaller magnitudes become zeros, since they have no finite reciprocal."""
_NESTED_RUN = 256


def nf4_format(block: int) -> QFormat:
    """Returns the NF4 format with blocks of `block` columns."""
    return QFormat(kind="float4", group=block, pack=block, scale_dtype="nested")


@partial(jax.jit, static_argnames="block")
def nearest_nf4(w: Float[Array, "N K"], block: int) -> tuple[UInt8[Array, "N K"], Float[Array, "N B"]]:
    """Rounds each weight to the nearest NF4 value. Ties go to the lower value.

    Args:
      w: The weights.
      block: Columns in a block; they must divide K.

    Returns:
      The codes, and the largest magnitude of each of the B blocks of a row.
    """
    blocks = w.astype(jnp.float32).reshape(w.shape[0], -1, block)
    magnitudes = jnp.max(jnp.abs(blocks), axis=-1)
    relative = blocks * jnp.where(magnitudes < _TINY, 0, 1 / magnitudes)[..., None]
    codes = jnp.searchsorted(NF4_BOUNDS, relative, method="compare_all")
    return codes.astype(jnp.uint8).reshape(w.shape), magnitudes


def nf4_array(codes: np.ndarray, magnitudes: np.ndarray) -> QArray:
    """Builds the QArray of a matrix, and quantizes the magnitudes.

    Args:
      codes: The codes of `nearest_nf4`, uint8 [N, K].
      magnitudes: The blocks' largest magnitudes, float32 [N, blocks].
    """
    format = nf4_format(codes.shape[1] // magnitudes.shape[1])
    leaves = nf4_leaves(pack_nibbles(codes, format.pack), magnitudes)
    return QArray(format=format, **{leaf: jnp.asarray(part) for leaf, part in leaves.items()})


def nf4_leaves(values: np.ndarray, magnitudes: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the leaves of a matrix, and quantizes the magnitudes.

    Args:
      values: The packed codes, uint8 [N, K / 2].
      magnitudes: The blocks' largest magnitudes, float32 [N, blocks].
    """
    offset = magnitudes.mean(dtype=np.float64).astype(np.float32)
    rest = magnitudes.reshape(-1) - offset
    runs = np.pad(rest, (0, -rest.size % _NESTED_RUN)).reshape(-1, _NESTED_RUN)
    scales = np.abs(runs).max(axis=1)
    code = dynamic_code()
    bounds = (code[:-1] + code[1:]) / 2
    relative = runs / np.maximum(scales, _TINY)[:, None]
    nested = np.searchsorted(bounds, relative).astype(np.uint8).reshape(-1)[: rest.size]
    return {
        "values": values,
        "scales": nested.reshape(magnitudes.shape),
        "codebook": NF4_VALUES,
        "scale_codes": code,
        "scale_blocks": scales,
        "scale_offset": np.asarray(offset),
    }


@cache
def dynamic_code() -> np.ndarray:
    """Returns the 256 values of the signed dynamic code, float32 in rising order.

    The decade up to 10^(d - 6) has 2^d steps.
    """
    positive = [10.0 ** (decade - 6) * (0.1 + 0.9 * (np.arange(2**decade) + 0.5) / 2**decade) for decade in range(7)]
    steps = np.concatenate(positive)
    return np.concatenate([-steps[::-1], [0.0], steps, [1.0]]).astype(np.float32)
