"""Matrices and formats for the tests of quantization to nearest."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ryzjax.qarray import QArray, QFormat
from ryzjax.quant.nf4 import nf4_format
from ryzjax.quant.scheme import Scheme

__all__ = ["FORMATS", "SIZES", "leaves_of", "random_matrix"]

FORMATS: dict[str, tuple[tuple[int, int], QFormat]] = {
    "int4, groups of 16": ((40, 176), Scheme(bits=4, group=16).format(176, "bfloat16")),
    "int4, groups of 32": ((300, 384), Scheme(bits=4, group=32).format(384, "bfloat16")),
    "int4, groups of 64": ((37, 448), Scheme(bits=4, group=64).format(448, "bfloat16")),
    "int4, groups of 128": ((130, 384), Scheme(bits=4, group=128).format(384, "bfloat16")),
    "int4, one scale a row": ((65, 352), Scheme(bits=4, group=None).format(352, "bfloat16")),
    "int4, small groups": ((9, 30), QFormat(kind="int4", group=10, pack=2, scale_dtype="bfloat16")),
    "int8, one scale a row": ((70, 173), Scheme(bits=8, group=None).format(173, "bfloat16")),
    "int8, one column": ((3, 1), Scheme(bits=8, group=None).format(1, "bfloat16")),
    "int8, groups of 32": ((33, 96), Scheme(bits=8, group=32).format(96, "bfloat16")),
    "int8, groups of 128": ((20, 384), Scheme(bits=8, group=128).format(384, "bfloat16")),
    "nf4, blocks of 32": ((50, 96), nf4_format(32)),
    "nf4, blocks of 64": ((300, 192), nf4_format(64)),
}
"""Shape [N, K] and format; some groups, and some K, are no whole number of vectors."""

SIZES = {"plain": 0.02, "tiny": 2.0**-100, "huge": 2.0**110}
"""Factors of normally distributed weights."""


def random_matrix(shape: tuple[int, int], dtype: str, size: float = 0.02) -> np.ndarray:
    """Returns normally distributed weights. Some rows are zeros, equal weights, subnormal, or have an outlier."""
    rng = np.random.default_rng(shape[0] + shape[1])
    w = rng.standard_normal(shape).astype(np.float32) * np.float32(size)
    if shape[0] > 6:
        w[1], w[2], w[3] = 0, np.float32(size), -np.float32(size)
        w[4] *= np.float32(2.0**-130)
        w[5, 0] = np.float32(size * 100)
    return w.astype(jnp.dtype(dtype))


def leaves_of(array: QArray) -> dict[str, np.ndarray]:
    """Returns the leaves of a matrix that was quantized to nearest, by name."""
    names = ("values", "scales", "codebook", "scale_codes", "scale_blocks", "scale_offset")
    return {name: np.asarray(leaf) for name in names if (leaf := getattr(array, name)) is not None}
