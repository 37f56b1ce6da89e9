"""Mixture of experts: a router and gated MLPs of which each token takes its top k (Shazeer et al., arXiv 1701.06538).

Routing is exact: no expert has a capacity and no token is dropped. On each device, the rows (one a token and
expert chosen) whose expert lives there are sorted by expert and multiplied group by group:

    tokens split over devices that also split the experts    gather all their tokens, compute one's own experts'
                                                             rows, reduce-scatter the sums back to their owners
    tokens whole on the devices that split the experts       the same without the gather, one all-reduce

Shapes are static, so a padded all-to-all would move every token to every device too: it saves nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from ryzjax.layers.glu import Gate
from ryzjax.layers.linear import Linear
from ryzjax.layers.weight import Weight
from ryzjax.ops.grouped_matmul import grouped_matmul
from ryzjax.ops.routing import Routing, route_top_k
from ryzjax.sharding import Placement

__all__ = ["ExpertLinear", "Experts", "MoE"]


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
        self.router = Linear(hidden_size, num_experts, in_axis="embed", out_axis=None, bias=router_bias, dtype=dtype)
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


class ExpertLinear(nnx.Module):
    """One linear layer an expert: weight [X, out, in] as bits where bfloat16, bias [X, out]."""

    def __init__(
        self,
        num_experts: int,
        in_size: int,
        out_size: int,
        *,
        in_axis: str,
        out_axis: str,
        bias: bool,
        dtype: DTypeLike,
    ):
        shape, axes = (num_experts, out_size, in_size), ("experts", out_axis, in_axis)
        self.weight = Weight(shape, dtype, axes, as_bits=True)
        self.bias = Weight(shape[:2], dtype, axes[:2]) if bias else None

    def leaves(self) -> tuple[jax.Array, jax.Array | None]:
        """(weight, bias or None), as arrays."""
        return self.weight[...], None if self.bias is None else self.bias[...]


class Experts(nnx.Module):
    """The experts' gated MLPs, split over devices by expert and inside each expert."""

    def __init__(
        self,
        *,
        hidden_size: int,
        expert_size: int,
        num_experts: int,
        glu: Gate,
        bias: bool,
        dtype: DTypeLike,
        placement: Placement,
    ):
        self.num_experts = num_experts
        self.expert_size = expert_size
        self.glu = glu
        self.placement = placement

        def linear(in_size: int, out_size: int, in_axis: str, out_axis: str) -> ExpertLinear:
            return ExpertLinear(
                num_experts, in_size, out_size, in_axis=in_axis, out_axis=out_axis, bias=bias, dtype=dtype
            )

        self.gate = linear(hidden_size, expert_size, "embed", "expert_ffn")
        self.up = linear(hidden_size, expert_size, "embed", "expert_ffn")
        self.down = linear(expert_size, hidden_size, "expert_ffn", "embed")

    def __call__(self, x: jax.Array, weights: jax.Array, ids: jax.Array) -> jax.Array:
        """[T, E], [T, k], [T, k] -> float32 [T, E]."""
        placement = self.placement
        axes = _Axes(
            tokens=placement.mesh_axes("tokens", x.shape[0]),
            experts=placement.mesh_axes("experts", self.num_experts),
            inner=placement.mesh_axes("expert_ffn", self.expert_size),
        )

        def local(x: jax.Array, weights: jax.Array, ids: jax.Array, *projections: _Projection) -> jax.Array:
            x, weights, ids = (axes.gather_tokens(a) for a in (x, weights, ids))
            return axes.sum(self._local(x, weights, ids, *projections, axes=axes))

        token_spec = placement.spec(("tokens", None), x.shape)
        # The hidden dimension of a weight may be split too (fsdp): it is gathered here, on entry.
        up_spec = (
            placement.spec(("experts", "expert_ffn", None), self.gate.weight.shape),
            placement.spec(("experts", "expert_ffn"), self.gate.weight.shape[:2]),
        )
        down_spec = (
            placement.spec(("experts", None, "expert_ffn"), self.down.weight.shape),
            placement.spec(("experts", None), self.down.weight.shape[:2]),
        )
        local = placement.per_shard(
            local,
            in_specs=(token_spec, token_spec, token_spec, up_spec, up_spec, down_spec),
            out_specs=token_spec,
        )
        return local(x, weights, ids, self.gate.leaves(), self.up.leaves(), self.down.leaves())

    def _local(
        self,
        x: jax.Array,
        weights: jax.Array,
        ids: jax.Array,
        gate: _Projection,
        up: _Projection,
        down: _Projection,
        *,
        axes: _Axes,
    ) -> jax.Array:
        """What this device's experts (and its part of each) add to every token: float32 [T, E]."""
        num_tokens, top_k = ids.shape
        num_local = gate[0].shape[0]
        local_ids = ids - axes.index(axes.experts) * num_local
        is_here = (local_ids >= 0) & (local_ids < num_local)
        # Rows of experts that live elsewhere are sorted behind all groups, where nothing is computed.
        group = jnp.where(is_here, local_ids, num_local).reshape(-1)
        order = jnp.argsort(group, stable=True)
        sizes = jnp.zeros(num_local, jnp.int32).at[group].add(1, mode="drop")
        row_expert = jnp.minimum(group[order], num_local - 1)
        rows = x[order // top_k]

        def project(rows: jax.Array, projection: _Projection, *, is_partial: bool) -> jax.Array:
            weight, bias = projection
            out = grouped_matmul(rows, weight, sizes)
            if bias is None:
                return out
            added = bias.astype(jnp.float32)[row_expert]
            # Partial sums over the inner dimension: the bias must come from one of the devices only.
            return out + (jnp.where(axes.index(axes.inner) == 0, added, 0) if is_partial else added)

        inner = self.glu(project(rows, gate, is_partial=False), project(rows, up, is_partial=False))
        out = project(inner.astype(x.dtype), down, is_partial=True)
        # Back in the order of tokens; rows that nobody computed here hold anything.
        out = out[jnp.argsort(order)].reshape(num_tokens, top_k, -1)
        return jnp.sum(jnp.where(is_here[..., None], out * weights[..., None], 0), axis=1)


_Projection = tuple[jax.Array, jax.Array | None]


class _Axes:
    """Mesh axes (each maybe none) that split tokens, experts and the inside of an expert, in one call."""

    def __init__(self, *, tokens: tuple[str, ...], experts: tuple[str, ...], inner: tuple[str, ...]):
        self.experts = experts
        self.inner = inner
        self._shared = tuple(name for name in tokens if name in (*experts, *inner))
        self._summed = tuple(name for name in (*experts, *inner) if name not in self._shared)

    def index(self, names: tuple[str, ...]) -> jax.Array | int:
        """This device's position along `names`."""
        return lax.axis_index(names) if names else 0

    def gather_tokens(self, x: jax.Array) -> jax.Array:
        """All tokens of the devices that split the experts among them."""
        return lax.all_gather(x, self._shared, tiled=True) if self._shared else x

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over all devices that hold experts, of one's own tokens."""
        if self._summed:
            x = lax.psum(x, self._summed)
        return lax.psum_scatter(x, self._shared, tiled=True) if self._shared else x
