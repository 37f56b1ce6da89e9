"""embed: rows of the embedding table."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["embed"]


def embed(token_ids: Int[Array, " T"], table: Float[Array, "V E"]) -> Float[Array, "T E"]:
    """`table[token_ids]` in the table's dtype; ids outside the vocabulary are clamped (padding may hold any)."""
    return jnp.take(table, token_ids, axis=0, mode="clip")
