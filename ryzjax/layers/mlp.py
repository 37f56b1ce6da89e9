"""GatedMLP: the feed-forward layer with SwiGLU or GeGLU (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

from functools import partial

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.layers.glu import GLU, Activation
from ryzjax.layers.linear import Linear, project
from ryzjax.sharding import Placement

__all__ = ["GatedMLP"]


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)).

    Args:
      hidden_size: the size of the layer's input and output.
      intermediate_size: the inner size.
      activation: the activation of the gate.
      dtype: the dtype of the weights.
      placement: the devices. The inner size is split over them.
      bias: whether the projections have biases.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation,
        dtype: DTypeLike,
        placement: Placement,
        bias: bool = False,
    ):
        self.placement = placement
        self.glu = GLU(activation)
        linear = partial(Linear, bias=bias, dtype=dtype, placement=placement)
        self.gate = linear(hidden_size, intermediate_size, in_axis="embed", out_axis="ffn")
        self.up = linear(hidden_size, intermediate_size, in_axis="embed", out_axis="ffn")
        self.down = linear(intermediate_size, hidden_size, in_axis="ffn", out_axis="embed")

    def __call__(self, x: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Returns the float32 output of the layer."""
        inner = self.glu(*project(x, (self.gate, self.up))).astype(x.dtype)
        return self.down(self.placement.constrain(inner, "tokens", "ffn"))
