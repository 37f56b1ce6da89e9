"""Attention: projections, RoPE, and attention of one layer: over the paged cache, or within packed sequences."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike

from ryzjax.batch import KVCache, SegmentBatch, TokenBatch
from ryzjax.layers.linear import Linear, linears
from ryzjax.layers.norm import RMSNorm
from ryzjax.layers.rope import Rope
from ryzjax.layers.weight import Weight
from ryzjax.ops.attention.attend import attend
from ryzjax.ops.attention.segment_attention import segment_attention
from ryzjax.ops.rope import apply_rope
from ryzjax.sharding import Placement

__all__ = ["Attention", "QKNorm"]

QKNorm = Literal["head", "projection"]


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245).

    Args:
      rope: the rotation of this layer; None for a layer without positions (NoPE).
      scale: multiplies the scores.
      placement: splits query heads, and KV heads as far as there are enough of them.
      qkv_bias, out_bias: biases of the projections.
      window: tokens a query sees, itself included; None for all before it.
      softcap: bound of the scores, by tanh; None for none.
      sinks: a learned score a query head that takes weight from the softmax and gives nothing (GPT-OSS).
      qk_norm: RMSNorm of queries and keys before the rotation, over each head or over the whole projection.
      norm_eps, norm_offset: of that norm.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        scale: float,
        dtype: DTypeLike,
        placement: Placement,
        qkv_bias: bool = False,
        out_bias: bool = False,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        qk_norm: QKNorm | None = None,
        norm_eps: float = 0.0,
        norm_offset: float = 0.0,
    ):
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.rope = rope
        self.scale = scale
        self.window = window
        self.softcap = softcap
        self.qk_norm: QKNorm | None = qk_norm
        self.placement = placement
        self.heads_unit = placement.query_heads_unit(num_heads, num_kv_heads)
        q_unit = head_dim * self.heads_unit

        def project(heads: int, axis: str, unit: int) -> Linear:
            return Linear(
                hidden_size,
                heads * head_dim,
                in_axis="embed",
                out_axis=axis,
                out_unit=unit,
                bias=qkv_bias,
                dtype=dtype,
                placement=placement,
            )

        self.q = project(num_heads, "heads", q_unit)
        self.k = project(num_kv_heads, "kv_heads", head_dim)
        self.v = project(num_kv_heads, "kv_heads", head_dim)
        self.o = Linear(
            num_heads * head_dim,
            hidden_size,
            in_axis="heads",
            out_axis="embed",
            in_unit=q_unit,
            bias=out_bias,
            dtype=dtype,
            placement=placement,
        )
        self.sinks = Weight((num_heads,), dtype, ("heads",), (self.heads_unit,)) if sinks else None
        norm = partial(RMSNorm, eps=norm_eps, dtype=dtype, placement=placement, offset=norm_offset)
        if qk_norm == "head":
            self.q_norm, self.k_norm = norm(head_dim), norm(head_dim)
        elif qk_norm == "projection":
            self.q_norm = norm(num_heads * head_dim, axis="heads", unit=q_unit)
            self.k_norm = norm(num_kv_heads * head_dim, axis="kv_heads", unit=head_dim)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array] | None,
        cache: KVCache | None,
        layer: jax.Array,
        batch: TokenBatch | SegmentBatch,
        *,
        max_query_len: int,
    ) -> tuple[jax.Array, KVCache | None]:
        """[T, E] -> (float32 [T, E], the cache with the keys and values of layer `layer`, a scalar, written).

        Args:
          rope: cos and sin of `self.rope` for this step's tokens; None where it is None.
          cache: None for a SegmentBatch, whose tokens attend within their segments.
        """
        q, k, v = (y.astype(x.dtype) for y in linears(x, (self.q, self.k, self.v)))
        if self.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self._heads(q, "heads"), self._heads(k, "kv_heads"), self._heads(v, "kv_heads")
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        sinks = None if self.sinks is None else self.sinks[...]
        if cache is None:
            assert isinstance(batch, SegmentBatch), "a TokenBatch needs a cache"
            out = self._within_segments(q, k, v, sinks, batch)
        else:
            assert isinstance(batch, TokenBatch), "a SegmentBatch has no cache"
            out, cache = self._over_pages(q, k, v, sinks, cache, layer, batch, max_query_len)
        out = self.placement.constrain(out, "tokens", "heads", None, units=(1, self.heads_unit, 1))
        return self.o(out.reshape(x.shape[0], -1)), cache

    def _over_pages(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        sinks: jax.Array | None,
        cache: KVCache,
        layer: jax.Array,
        batch: TokenBatch,
        max_query_len: int,
    ) -> tuple[jax.Array, KVCache]:
        def attend_shard(
            q: jax.Array,
            k: jax.Array,
            v: jax.Array,
            sinks: jax.Array | None,
            cache: KVCache,
            layer: jax.Array,
            batch: TokenBatch,
        ) -> tuple[jax.Array, KVCache]:
            return attend(
                q,
                k,
                v,
                cache,
                layer,
                batch,
                scale=self.scale,
                max_query_len=max_query_len,
                window=self.window,
                softcap=self.softcap,
                sinks=sinks,
            )

        specs = self.placement.attention_specs(self.num_heads, self.num_kv_heads, cache)
        attend_shards = self.placement.per_shard(
            attend_shard,
            in_specs=(
                specs.heads,
                specs.kv_heads,
                specs.kv_heads,
                specs.per_head,
                specs.cache,
                specs.replicated,
                specs.replicated,
            ),
            out_specs=(specs.heads, specs.cache),
        )
        out, cache = attend_shards(q, k, v, sinks, cache, layer, batch)
        # A kernel's results know no mesh; the next layer must not be traced again because of that.
        return out, self.placement.constrain_cache(cache)

    def _within_segments(
        self, q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array | None, batch: SegmentBatch
    ) -> jax.Array:
        """[T, N, D]; rows are split over devices as tokens are, heads as in `_over_pages`."""
        rows, length = batch.segment_ids.shape
        q, k, v = (x.reshape(rows, length, -1, self.head_dim) for x in (q, k, v))

        def attend_shard(
            q: jax.Array,
            k: jax.Array,
            v: jax.Array,
            segment_ids: jax.Array,
            positions: jax.Array,
            sinks: jax.Array | None,
        ) -> jax.Array:
            return segment_attention(
                q,
                k,
                v,
                segment_ids,
                positions,
                scale=self.scale,
                window=self.window,
                softcap=self.softcap,
                sinks=sinks,
            )

        spec = self.placement.spec
        heads = spec(("tokens", None, "heads", None), q.shape, (1, 1, self.heads_unit, 1))
        kv_heads = spec(("tokens", None, "kv_heads", None), k.shape)
        per_token = spec(("tokens", None), (rows, length))
        attend_shards = self.placement.per_shard(
            attend_shard,
            in_specs=(
                heads,
                kv_heads,
                kv_heads,
                per_token,
                per_token,
                spec(("heads",), (self.num_heads,), (self.heads_unit,)),
            ),
            out_specs=heads,
        )
        out = attend_shards(q, k, v, batch.segment_ids, batch.positions, sinks)
        return out.reshape(rows * length, -1, self.head_dim)

    def _heads(self, x: jax.Array, axis: Literal["heads", "kv_heads"]) -> jax.Array:
        x = x.reshape(x.shape[0], -1, self.head_dim)
        unit = self.heads_unit if axis == "heads" else 1
        return self.placement.constrain(x, "tokens", axis, None, units=(1, unit, 1))
