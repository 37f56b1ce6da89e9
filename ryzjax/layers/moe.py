"""Mixture of experts: a router, and gated MLPs of which each token takes its top k (Shazeer et al., arXiv 1701.06538).

Routing is exact: no expert has a capacity and no token is dropped.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.experts import Experts
from ryzjax.layers.glu import Gate
from ryzjax.layers.linear import Linear
from ryzjax.ops.moe.routing import Routing, route_top_k
from ryzjax.sharding import Placement

__all__ = ["MoE"]


class MoE(nnx.Module):
    """sum over the top k experts of weight * expert(x).

    Args:
      expert_size: inner dimension of one expert.
      routing: how the router's scores become weights.
      glu: what an expert does between its projections.
      router_bias, expert_bias: whether these have biases.
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, E] -> float32 [T, E]."""
        with jax.named_scope("router"):
            logits = self.placement.constrain(self.router(x), "tokens", None)
            weights, ids = route_top_k(logits, self.top_k, routing=self.routing)
        with jax.named_scope("experts"):
            return self.experts(x, weights, ids)
