"""The experts of a mixture: one gated MLP each, split over devices by expert and inside each expert."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.layers.expert_exchange import ExpertAxes, exchange_tokens, gather_tokens
from ryzjax.layers.glu import Gate
from ryzjax.layers.weight import Weight
from ryzjax.ops.moe.grouped_matmul import grouped_matmul
from ryzjax.sharding import Placement

__all__ = ["ExpertLinear", "Experts"]


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
    """sum over a token's experts of weight * down(glu(gate(x), up(x)))."""

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
        axes = ExpertAxes(
            tokens=placement.mesh_axes("tokens", x.shape[0]),
            experts=placement.mesh_axes("experts", self.num_experts),
            inner=placement.mesh_axes("expert_ffn", self.expert_size),
        )
        uses_all_to_all = placement.layout.expert_exchange == "all_to_all" and axes.can_exchange

        def local(x: jax.Array, weights: jax.Array, ids: jax.Array, *projections: _Projection) -> jax.Array:
            def compute(x: jax.Array, source: jax.Array, expert: jax.Array) -> jax.Array:
                return self._rows(x, source, expert, *projections, axes=axes)

            move = exchange_tokens if uses_all_to_all else gather_tokens
            return move(x, weights, ids, compute, axes=axes, num_local=projections[0][0].shape[0])

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

    def _rows(
        self,
        x: jax.Array,
        source: jax.Array,
        expert: jax.Array,
        gate: _Projection,
        up: _Projection,
        down: _Projection,
        *,
        axes: ExpertAxes,
    ) -> jax.Array:
        """float32 [R, E], row i the expert's output for x[source[i]]; a partial sum over `axes.inner`.

        Args:
          x: [T, E].
          source: [R], a row of x.
          expert: [R], an expert of this device; the number of them where there is nothing to do, and the result
            is finite but of no meaning.
        """
        num_local = gate[0].shape[0]
        # Sorted by expert; rows with nothing to do come last, behind all groups.
        order = jnp.argsort(expert, stable=True)
        sizes = jnp.zeros(num_local, jnp.int32).at[expert].add(1, mode="drop")
        row_expert = jnp.minimum(expert[order], num_local - 1)

        def project(rows: jax.Array, projection: _Projection, *, is_partial: bool) -> jax.Array:
            weight, bias = projection
            out = grouped_matmul(rows, weight, sizes)
            if bias is None:
                return out
            added = bias.astype(jnp.float32)[row_expert]
            # Partial sums over the inner dimension: the bias must come from one of the devices only.
            return out + (jnp.where(axes.index(axes.inner) == 0, added, 0) if is_partial else added)

        rows = x[source[order]]
        inner = self.glu(project(rows, gate, is_partial=False), project(rows, up, is_partial=False))
        return project(inner.astype(x.dtype), down, is_partial=True)[jnp.argsort(order)]


_Projection = tuple[jax.Array, jax.Array | None]
