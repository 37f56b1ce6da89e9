"""Block: attention and MLP around a residual stream, with norms before, after, or on both sides."""

from __future__ import annotations

import jax
from flax import nnx

from ryzjax.batch import KVCache, SegmentBatch, TokenBatch
from ryzjax.layers.attention import Attention
from ryzjax.layers.mlp import GatedMLP
from ryzjax.layers.moe import MoE
from ryzjax.layers.norm import RMSNorm
from ryzjax.sharding import Placement

__all__ = ["Block"]


class Block(nnx.Module):
    """x += post_norm(attention(norm(x))); x += post_norm(mlp(norm(x))), each norm where the family has it.

    Args:
      attention_norm, mlp_norm: before the two (pre-norm: Llama); None for none.
      attention_post_norm, mlp_post_norm: after the two, before the residual (OLMo 2; Gemma has both); None for none.
    """

    def __init__(
        self,
        *,
        attention: Attention,
        mlp: GatedMLP | MoE,
        placement: Placement,
        attention_norm: RMSNorm | None = None,
        mlp_norm: RMSNorm | None = None,
        attention_post_norm: RMSNorm | None = None,
        mlp_post_norm: RMSNorm | None = None,
    ):
        self.placement = placement
        self.attention_norm = attention_norm
        self.attention = attention
        self.attention_post_norm = attention_post_norm
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.mlp_post_norm = mlp_post_norm

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
        """[T, E] -> ([T, E], cache).

        Args:
          layer: a scalar, the index into the stacked cache.
          rope, cache, batch, max_query_len: as in Attention.
        """
        x, cache = self.attend(x, rope, cache, layer, batch, max_query_len=max_query_len)
        return self.feed_forward(x), cache

    def attend(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array] | None,
        cache: KVCache | None,
        layer: jax.Array,
        batch: TokenBatch | SegmentBatch,
        *,
        max_query_len: int,
    ) -> tuple[jax.Array, KVCache | None]:
        """The first half of a block, its attention."""
        with jax.named_scope("attention"):
            normed = x if self.attention_norm is None else self.attention_norm(x)
            attended, cache = self.attention(normed, rope, cache, layer, batch, max_query_len=max_query_len)
            return self._residual(x, attended, self.attention_post_norm), cache

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The second half, its MLP."""
        with jax.named_scope("mlp"):
            normed = x if self.mlp_norm is None else self.mlp_norm(x)
            return self._residual(x, self.mlp(normed), self.mlp_post_norm)

    def _residual(self, x: jax.Array, update: jax.Array, post_norm: RMSNorm | None) -> jax.Array:
        # Reduced over the tensor axis here, in float32, once for attention and once for the MLP.
        update = self.placement.constrain(update, "tokens", None).astype(x.dtype)
        return x + (update if post_norm is None else post_norm(update))
