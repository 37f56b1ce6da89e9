"""route_top_k: chooses the experts of each token and their weights."""

from __future__ import annotations

from typing import Literal

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.ops.dispatch import reference_only

__all__ = ["Routing", "route_top_k"]

Routing = Literal["softmax", "softmax_normalized", "softmax_of_top"]
"""How router logits become weights.

"softmax" takes the softmax over all experts and keeps the top k. "softmax_normalized" (Mixtral, Qwen3) also scales them
to sum to one. "softmax_of_top" (GPT-OSS) takes the softmax over the top k only. The last two are equal except for
rounding.
"""


@reference_only("route_top_k")
def route_top_k(
    logits: Float[Array, "T X"], k: int, *, routing: Routing
) -> tuple[Float[Array, "T k"], Int[Array, "T k"]]:
    """Returns the weights and the expert ids of each token, the most likely expert first. Experts have no capacity."""
    if routing == "softmax_of_top":
        top, ids = lax.top_k(logits, k)
        return jax.nn.softmax(top, axis=-1), ids
    weights, ids = lax.top_k(jax.nn.softmax(logits, axis=-1), k)
    if routing == "softmax_normalized":
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights, ids
