"""embed: looks up rows of the embedding table."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from ryzjax.ops.dispatch import reference_only
from ryzjax.qarray import QArray, dequantize

__all__ = ["embed", "embed_quantized"]


@reference_only("embed")
def embed(token_ids: Int[Array, " T"], table: Shaped[Array, "V E"]) -> Shaped[Array, "T E"]:
    """Returns `table[token_ids]` in the table's dtype. Ids outside the vocabulary, as in padding, are clamped."""
    return jnp.take(table, token_ids, axis=0, mode="clip")


def embed_quantized(token_ids: Int[Array, " T"], table: QArray, dtype: DTypeLike) -> Float[Array, "T E"]:
    """Returns rows of a quantized table [V, E]. Only these rows are dequantized.

    The table has scales for each row, and its columns are in order.
    """
    rows = replace(
        table,
        values=embed(token_ids, table.values),
        scales=embed(token_ids, table.scales),
        zeros=None if table.zeros is None else embed(token_ids, table.zeros),
    )
    return dequantize(rows, jnp.dtype(dtype))
