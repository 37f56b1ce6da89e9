"""Experts: the gated MLPs of a mixture of experts, split over devices by expert and inside each expert."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from ryzjax.layers.expert_exchange import ExpertAxes, exchange_tokens, gather_tokens
from ryzjax.layers.glu import Gate
from ryzjax.layers.weight import Weight
from ryzjax.ops.moe.grouped_matmul import grouped_matmul
from ryzjax.sharding import Placement

__all__ = ["ExpertLinear", "Experts"]

Projection = tuple[Shaped[Array, "X _ _"], Float[Array, "X _"] | None]
"""The weights [X, out, in] of one projection of X experts, bfloat16 as its bits, and their biases [X, out] or None."""


class ExpertLinear(nnx.Module):
    """One linear layer for each of X experts.

    The weight is [X, out, in]. bfloat16 weights are stored as their bits (`ryzjax.bits`). The bias is [X, out].

    Args:
      num_experts: the number of experts, X.
      in_size, out_size: the numbers of in and out features.
      in_axis, out_axis: their logical axes.
      bias: whether the layers have biases.
      dtype: the dtype of weights and biases.
    """

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

    def leaves(self) -> Projection:
        """Returns the weight and the bias as arrays."""
        return self.weight[...], None if self.bias is None else self.bias[...]


class Experts(nnx.Module):
    """The sum of weight * down(glu(gate(x), up(x))) over the experts of each token.

    Args:
      hidden_size: the size of the layer's input and output.
      expert_size: the inner size of one expert.
      num_experts: the number of experts.
      glu: how an expert combines its gate and up projections.
      bias: whether the projections have biases.
      dtype: the dtype of the weights.
      placement: the devices.
    """

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

    def __call__(
        self, x: Float[Array, "T E"], weights: Float[Array, "T k"], ids: Int[Array, "T k"]
    ) -> Float[Array, "T E"]:
        """Returns the float32 output of the layer.

        Args:
          x: activations.
          weights: the weight of each expert of a token.
          ids: the k experts of each token.
        """
        placement = self.placement
        axes = ExpertAxes(
            tokens=placement.mesh_axes("tokens", x.shape[0]),
            experts=placement.mesh_axes("experts", self.num_experts),
            inner=placement.mesh_axes("expert_ffn", self.expert_size),
        )
        uses_all_to_all = placement.layout.expert_exchange == "all_to_all" and axes.can_exchange

        def local(
            x: Float[Array, "T E"], weights: Float[Array, "T k"], ids: Int[Array, "T k"], *projections: Projection
        ) -> Float[Array, "T E"]:
            def compute(
                x: Float[Array, "T E"], source: Int[Array, " M"], expert: Int[Array, " M"]
            ) -> Float[Array, "M E"]:
                return self._rows(x, source, expert, *projections, axes=axes)

            move = exchange_tokens if uses_all_to_all else gather_tokens
            return move(x, weights, ids, compute, axes=axes, num_local=projections[0][0].shape[0])

        token_spec = placement.spec(("tokens", None), x.shape)
        # If the layout also splits the hidden dimension of a weight (fsdp), it is gathered here, on entry.
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
        x: Float[Array, "T E"],
        source: Int[Array, " M"],
        expert: Int[Array, " M"],
        gate: Projection,
        up: Projection,
        down: Projection,
        *,
        axes: ExpertAxes,
    ) -> Float[Array, "M E"]:
        """Returns the float32 output of expert[i] for x[source[i]] in row i, a partial sum over `axes.inner`.

        Args:
          x: activations.
          source: an index into the rows of x.
          expert: the index of an expert of this device, or the number of experts of this device for a row that none
            of them computes. The output of such a row is finite and has no meaning.
          gate, up, down: the projections of this device's experts.
          axes: the mesh axes that split tokens and experts.
        """
        num_local = gate[0].shape[0]
        # Rows are sorted by expert. Rows that no expert of this device computes come last, behind all groups.
        order = jnp.argsort(expert, stable=True)
        sizes = jnp.zeros(num_local, jnp.int32).at[expert].add(1, mode="drop")
        row_expert = jnp.minimum(expert[order], num_local - 1)

        def project(rows: Float[Array, "M K"], projection: Projection, *, is_partial: bool) -> Float[Array, "M N"]:
            weight, bias = projection
            out = grouped_matmul(rows, weight, sizes)
            if bias is None:
                return out
            added = bias.astype(jnp.float32)[row_expert]
            # The down projection is a partial sum over the inner dimension. Only one of its devices adds the bias.
            return out + (jnp.where(axes.index(axes.inner) == 0, added, 0) if is_partial else added)

        rows = x[source[order]]
        inner = self.glu(project(rows, gate, is_partial=False), project(rows, up, is_partial=False))
        return project(inner.astype(x.dtype), down, is_partial=True)[jnp.argsort(order)]
