"""SwiGLU MLP (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.linear import Linear
from ryzjax.sharding import Placement

__all__ = ["SwiGLU"]


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, *, hidden_size: int, intermediate_size: int, bias: bool, dtype: DTypeLike, placement: Placement):
        self.placement = placement
        self.gate = Linear(hidden_size, intermediate_size, in_axis="embed", out_axis="ffn", bias=bias, dtype=dtype)
        self.up = Linear(hidden_size, intermediate_size, in_axis="embed", out_axis="ffn", bias=bias, dtype=dtype)
        self.down = Linear(intermediate_size, hidden_size, in_axis="ffn", out_axis="embed", bias=bias, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, E] -> float32 [T, E]."""
        inner = (jax.nn.silu(self.gate(x)) * self.up(x)).astype(x.dtype)
        return self.down(self.placement.constrain(inner, "tokens", "ffn"))
