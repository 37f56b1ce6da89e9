"""encode_matrix: quantizes one matrix by one method, given the moments of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.errors import ConfigError
from ryzjax.quant.gptq import Factor, gptq
from ryzjax.quant.grid import Grid, nearest_levels, round_to_grid, search_grid
from ryzjax.quant.hqq import improve_grid
from ryzjax.quant.scheme import Scheme, scale_dtype_for

__all__ = ["MatrixMethod", "check_weights", "encode_matrix", "not_finite", "round_to_nearest"]

MatrixMethod = Literal["rtn", "hqq", "gptq"]


@dataclass(frozen=True, kw_only=True)
class _Grouped:
    """A matrix as groups.

    Attributes:
      w: The weights, float32 [N, G, g].
      low, high: The range of q.
    """

    w: Float[Array, "N G g"]
    low: int
    high: int


def check_weights(name: str, w: jax.Array) -> None:
    """Refuses weights that are not finite, which no grid can represent.

    Args:
      name: Name of the weight, for error messages.
      w: The weights.

    Raises:
      ConfigError: A weight is NaN or infinite.
    """
    if not bool(jnp.all(jnp.isfinite(w))):
        raise not_finite(name, int(jnp.sum(~jnp.isfinite(w))))


def not_finite(name: str, count: int) -> ConfigError:
    """Returns the error for a weight of which `count` numbers are NaN or infinite."""
    return ConfigError(
        f"{name}: {count:,} weights are NaN or infinite; the checkpoint is damaged, or its training diverged. "
        "Use another copy of the model"
    )


def round_to_nearest(
    w: Float[Array, "N K"],
    scheme: Scheme,
    importance: Float[Array, " K"],
    scale_dtype: str,
    *,
    search: bool = True,
) -> Float[Array, "N K"]:
    """Rounds a matrix to nearest and returns the dequantized values.

    Args:
      w: The matrix, float32.
      scheme: Bits and groups.
      importance: Weight of each in feature's squared error when scales are searched.
      scale_dtype: The dtype that scales are stored in.
      search: Whether to search for the scales, as method "rtn" does. False takes the whole range of each group.
    """
    grouped = _grouped(w, scheme)
    grid = _grid(grouped, scheme, importance, scale_dtype, search=search)
    return round_to_grid(grouped.w, grid, grouped.low, grouped.high).reshape(w.shape)


def encode_matrix(
    w: Float[Array, "N K"],
    scheme: Scheme,
    method: MatrixMethod,
    *,
    model_dtype: str,
    importance: Float[Array, " K"] | None = None,
    factor: Factor | None = None,
) -> EncodedMatrix:
    """Quantizes one matrix.

    Args:
      w: The matrix, float32.
      scheme: Bits and groups; the groups must divide K.
      method: How to choose q: "rtn", "hqq" or "gptq".
      model_dtype: The model's dtype, which determines the dtype of the scales.
      importance: Weight of each in feature's squared error when scales are searched, usually the diagonal of the
        Hessian of the inputs; ones by default.
      factor: The factorized Hessian of the inputs, which "gptq" needs.
    """
    n, k = w.shape
    importance = jnp.ones(k) if importance is None else importance
    grouped = _grouped(w, scheme)
    peak = np.asarray(jnp.max(jnp.abs(grouped.w), axis=-1)) / scheme.high / 2
    dtype = scale_dtype_for(model_dtype, peak[peak > 0])
    grid = _grid(grouped, scheme, importance, dtype)
    if method == "hqq" and not scheme.symmetric:
        grid = improve_grid(grouped.w, grid, low=grouped.low, high=grouped.high, scale_dtype=dtype)
    if method == "gptq":
        assert factor is not None
        q = gptq(w, factor, grid, low=grouped.low, high=grouped.high)
    else:
        q = nearest_levels(grouped.w, grid, grouped.low, grouped.high).reshape(n, k)
    format = scheme.format(k, dtype)
    whole = np.asarray(q).astype(np.int8)
    scales = np.asarray(grid.scale.astype(dtype))
    if scheme.bits == 8:
        return EncodedMatrix(format=format, q=whole, scales=scales)
    zeros = None if scheme.symmetric else (np.asarray(grid.zero) + 8).astype(np.uint8)
    return EncodedMatrix(format=format, q=(whole + 8).astype(np.uint8), scales=scales, zeros=zeros)


def _grouped(w: jax.Array, scheme: Scheme) -> _Grouped:
    n, k = w.shape
    return _Grouped(w=w.reshape(n, -1, scheme.group or k), low=scheme.low, high=scheme.high)


def _grid(grouped: _Grouped, scheme: Scheme, importance: jax.Array, scale_dtype: str, *, search: bool = True) -> Grid:
    return search_grid(
        grouped.w,
        importance.reshape(grouped.w.shape[1:]),
        low=grouped.low,
        high=grouped.high,
        symmetric=scheme.symmetric,
        scale_dtype=scale_dtype,
        search=search,
    )
