"""route_top_k: which experts a token goes to, and with which weights."""

from __future__ import annotations

from typing import Literal

import jax
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["Routing", "route_top_k"]

Routing = Literal["softmax", "softmax_normalized", "softmax_of_top"]
"""How scores become weights: softmax over all experts, of which the top k are kept as they are ("softmax") or
scaled to sum to one ("softmax_normalized": Mixtral, Qwen3), or softmax over the top k alone ("softmax_of_top":
GPT-OSS). The last two agree but for rounding."""


def route_top_k(
    logits: Float[Array, "T X"], k: int, *, routing: Routing
) -> tuple[Float[Array, "T k"], Int[Array, "T k"]]:
    """(weights, expert ids) of each token, the likeliest expert first; exact, no expert has a capacity."""
    if routing == "softmax_of_top":
        top, ids = lax.top_k(logits, k)
        return jax.nn.softmax(top, axis=-1), ids
    weights, ids = lax.top_k(jax.nn.softmax(logits, axis=-1), k)
    if routing == "softmax_normalized":
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights, ids
