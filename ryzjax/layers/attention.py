"""The attention layer: projections, RoPE, and attention over the paged KV cache or within packed sequences."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ryzjax.attention_settings import AttentionSettings
from ryzjax.batch import KVCache, SegmentBatch, TokenBatch
from ryzjax.layers.linear import Linear, project
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
      hidden_size: the size of the layer's input and output.
      num_heads, num_kv_heads: the numbers of query heads and KV heads.
      head_dim: the size of a head.
      rope: the rotation of this layer; None for a layer without positions (NoPE).
      scale, window, softcap: see `AttentionSettings`.
      dtype: the dtype of the weights.
      placement: the devices. Query heads are split over them, and KV heads too if there are enough.
      qkv_bias, out_bias: whether the projections have biases.
      sinks: whether each query head has a learned score that takes part in the softmax but has no value (GPT-OSS).
      qk_norm: RMSNorm of queries and keys before the rotation, over each head or over the whole projection; None for
        no norm.
      norm_eps, norm_offset: eps and offset of that norm.
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
        self.settings = AttentionSettings(scale=scale, window=window, softcap=softcap)
        self.qk_norm: QKNorm | None = qk_norm
        self.placement = placement
        self.heads_unit = placement.query_heads_unit(num_heads, num_kv_heads)
        q_unit = head_dim * self.heads_unit

        def projection(heads: int, axis: str, unit: int) -> Linear:
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

        self.q = projection(num_heads, "heads", q_unit)
        self.k = projection(num_kv_heads, "kv_heads", head_dim)
        self.v = projection(num_kv_heads, "kv_heads", head_dim)
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
        x: Float[Array, "T E"],
        rope: tuple[Float[Array, "T half"], Float[Array, "T half"]] | None,
        cache: KVCache | None,
        layer: Int[Array, ""],
        batch: TokenBatch | SegmentBatch,
        *,
        max_query_len: int,
    ) -> tuple[Float[Array, "T E"], KVCache | None]:
        """Returns the float32 output [T, E], and the cache with the keys and values of this layer written.

        Args:
          x: activations [T, E].
          rope: cos and sin of `self.rope` for the tokens of this step, or None without a rope.
          cache: the paged KV cache for a TokenBatch, or None for a SegmentBatch.
          layer: the index of this layer in the cache, a scalar.
          batch: the rows of the step.
          max_query_len: 1 if all rows decode.
        """
        q, k, v = (y.astype(x.dtype) for y in project(x, (self.q, self.k, self.v)))
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
            out, cache = attend(
                q,
                k,
                v,
                cache,
                layer,
                batch,
                sinks,
                settings=self.settings,
                max_query_len=max_query_len,
                placement=self.placement,
            )
        out = self.placement.constrain(out, "tokens", "heads", None, units=(1, self.heads_unit, 1))
        return self.o(out.reshape(x.shape[0], -1)), cache

    def _within_segments(
        self,
        q: Float[Array, "T N D"],
        k: Float[Array, "T H D"],
        v: Float[Array, "T H D"],
        sinks: Float[Array, " N"] | None,
        batch: SegmentBatch,
    ) -> Float[Array, "T N D"]:
        rows, length = batch.segment_ids.shape
        q, k, v = (x.reshape(rows, length, -1, self.head_dim) for x in (q, k, v))
        out = segment_attention(
            q, k, v, batch.segment_ids, batch.positions, sinks, settings=self.settings, placement=self.placement
        )
        return out.reshape(rows * length, -1, self.head_dim)

    def _heads(self, x: jax.Array, axis: Literal["heads", "kv_heads"]) -> jax.Array:
        x = x.reshape(x.shape[0], -1, self.head_dim)
        unit = self.heads_unit if axis == "heads" else 1
        return self.placement.constrain(x, "tokens", axis, None, units=(1, unit, 1))
