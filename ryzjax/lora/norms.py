"""row_norms: the norm of each row of a plain or quantized weight. DoRA's magnitudes start from it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ryzjax.qarray import QArray, dequantize, take_columns

__all__ = ["row_norms"]

_PANEL_ELEMENTS = 2**22
"""The number of weights that are dequantized at a time."""


@jax.jit
def row_norms(weight: jax.Array | QArray) -> Float[Array, " N"]:
    """Returns the norm of each row, in float32.

    Args:
      weight: The weight [N, K]. A quantized weight is dequantized one panel of columns at a time.
    """
    if not isinstance(weight, QArray):
        return jnp.sqrt(_squares(weight))
    # The order of columns does not change a sum over them.
    weight = replace(weight, order=None, format=replace(weight.format, has_order=False))
    n, k = weight.shape
    unit = weight.format.column_unit
    panel = max(1, _PANEL_ELEMENTS // n // unit) * unit
    if k <= panel or k % unit:
        return jnp.sqrt(_squares(dequantize(weight)))
    whole, rest = divmod(k, panel)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + _squares(dequantize(take_columns(weight, i * panel, panel)))

    total = lax.fori_loop(0, whole, add, jnp.zeros(n, jnp.float32))
    return jnp.sqrt(total + _squares(dequantize(take_columns(weight, whole * panel, rest))) if rest else total)


def _squares(w: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(w.astype(jnp.float32)), axis=1)
