"""MoE: a mixture of experts, in which a router selects the top k gated MLPs for each token.

The source is Shazeer et al., arXiv 1701.06538. Routing is exact: no expert has a capacity and no token is dropped.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.layers.experts import Experts
from ryzjax.layers.glu import Gate
from ryzjax.layers.linear import Linear
from ryzjax.ops.moe.routing import Routing, route_top_k
from ryzjax.sharding import Placement

__all__ = ["MoE"]


class MoE(nnx.Module):
    """The sum of weight * expert(x) over the top k experts of each token.

    Args:
      hidden_size: the size of the layer's input and output.
      expert_size: the inner size of one expert.
      num_experts: the number of experts.
      top_k: the number of experts that each token uses.
      routing: how the scores of the router become weights.
      glu: how an expert combines its gate and up projections.
      dtype: the dtype of the weights.
      placement: the devices.
      router_bias, expert_bias: whether the router and the experts have biases.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        expert_size: int,
        num_experts: int,
        top_k: int,
        routing: Routing,
        glu: Gate,
        dtype: DTypeLike,
        placement: Placement,
        router_bias: bool = False,
        expert_bias: bool = False,
    ):
        self.top_k = top_k
        self.routing: Routing = routing
        self.placement = placement
        self.router = Linear(
            hidden_size,
            num_experts,
            in_axis="embed",
            out_axis=None,
            bias=router_bias,
            dtype=dtype,
            placement=placement,
        )
        self.experts = Experts(
            hidden_size=hidden_size,
            expert_size=expert_size,
            num_experts=num_experts,
            glu=glu,
            bias=expert_bias,
            dtype=dtype,
            placement=placement,
        )

    def __call__(self, x: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Returns the float32 output of the layer."""
        with jax.named_scope("router"):
            logits = self.placement.constrain(self.router(x), "tokens", None)
            weights, ids = route_top_k(logits, self.top_k, routing=self.routing)
        with jax.named_scope("experts"):
            return self.experts(x, weights, ids)
