"""Attention: projections, RoPE, KV write and paged attention of one layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.layers.linear import Linear
from ryzjax.ops.kv_write import write_kv
from ryzjax.ops.paged_attention import paged_attention
from ryzjax.ops.rope import apply_rope
from ryzjax.sharding import Placement

__all__ = ["Attention"]


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245) over the paged cache.

    Args:
      placement: splits query heads, and KV heads where there are enough; else each device keeps a copy of
        the KV heads its query heads read.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        dtype: DTypeLike,
        placement: Placement,
    ):
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.placement = placement
        self.kv_copies = placement.kv_replication(num_kv_heads)

        def project(heads: int, axis: str) -> Linear:
            return Linear(
                hidden_size,
                heads * head_dim,
                in_axis="embed",
                out_axis=axis,
                out_unit=head_dim,
                bias=bias,
                dtype=dtype,
            )

        self.q = project(num_heads, "heads")
        self.k = project(num_kv_heads, "kv_heads")
        self.v = project(num_kv_heads, "kv_heads")
        self.o = Linear(
            num_heads * head_dim,
            hidden_size,
            in_axis="heads",
            out_axis="embed",
            in_unit=head_dim,
            bias=bias,
            dtype=dtype,
        )

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        cache: KVCache,
        layer: jax.Array,
        batch: TokenBatch,
        *,
        max_query_len: int,
    ) -> tuple[jax.Array, KVCache]:
        """[T, E] -> (float32 [T, E], the cache with the keys and values of layer `layer`, a scalar, written)."""
        q = self._heads(self.q(x).astype(x.dtype), self.num_heads)
        k = self._heads(self.k(x).astype(x.dtype), self.num_kv_heads)
        v = self._heads(self.v(x).astype(x.dtype), self.num_kv_heads)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if self.kv_copies > 1:
            k, v = (jnp.repeat(a, self.kv_copies, axis=1) for a in (k, v))

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, cache: KVCache, layer: jax.Array, batch: TokenBatch
        ) -> tuple[jax.Array, KVCache]:
            cache = write_kv(cache, layer, k, v, batch)
            out = paged_attention(q, cache, layer, batch, scale=self.head_dim**-0.5, max_query_len=max_query_len)
            return out, cache

        specs = self.placement.attention_specs(self.num_heads, cache.k.shape)
        attend = self.placement.per_shard(
            attend,
            in_specs=(specs.heads, specs.kv_heads, specs.kv_heads, specs.cache, specs.replicated, specs.replicated),
            out_specs=(specs.heads, specs.cache),
        )
        out, cache = attend(q, k, v, cache, layer, batch)
        out = self.placement.constrain(out, "tokens", "heads", None)
        return self.o(out.reshape(x.shape[0], -1)), cache

    def _heads(self, x: jax.Array, heads: int) -> jax.Array:
        x = x.reshape(x.shape[0], heads, self.head_dim)
        return self.placement.constrain(x, "tokens", "heads" if heads == self.num_heads else "kv_heads", None)
