"""embed: rows of the embedding table."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from ryzjax.qarray import QArray, dequantize

__all__ = ["embed", "embed_quantized"]


def embed(token_ids: Int[Array, " T"], table: Shaped[Array, "V E"]) -> Shaped[Array, "T E"]:
    """`table[token_ids]` in the table's dtype; ids outside the vocabulary are clamped (padding may hold any)."""
    return jnp.take(table, token_ids, axis=0, mode="clip")


def embed_quantized(token_ids: Int[Array, " T"], table: QArray, dtype: DTypeLike) -> Float[Array, "T E"]:
    """`embed` of a quantized table [V, E] with scales of its rows: only the rows that are asked for are dequantized."""
    rows = replace(table, values=embed(token_ids, table.values), scales=embed(token_ids, table.scales))
    return dequantize(rows, jnp.dtype(dtype))
