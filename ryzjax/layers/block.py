"""Block: attention and an MLP on a residual stream, with norms before them, after them, or both."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ryzjax.batch import KVCache, SegmentBatch, TokenBatch
from ryzjax.layers.attention import Attention
from ryzjax.layers.mlp import GatedMLP
from ryzjax.layers.moe import MoE
from ryzjax.layers.norm import RMSNorm
from ryzjax.sharding import Placement

__all__ = ["Block"]


class Block(nnx.Module):
    """x += post_norm(attention(norm(x))), then x += post_norm(mlp(norm(x))).

    Args:
      attention: the attention layer.
      mlp: the MLP or the mixture of experts.
      placement: the devices.
      attention_norm, mlp_norm: the norms of the inputs of `attention` and `mlp` (Llama), or None.
      attention_post_norm, mlp_post_norm: the norms of their outputs (OLMo 2; Gemma has norms of both), or None.
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
        x: Float[Array, "T E"],
        rope: tuple[Float[Array, "T half"], Float[Array, "T half"]] | None,
        cache: KVCache | None,
        layer: Int[Array, ""],
        batch: TokenBatch | SegmentBatch,
        *,
        max_query_len: int,
    ) -> tuple[Float[Array, "T E"], KVCache | None]:
        """Returns the residual stream after the block, and the cache with the keys and values of this layer written.

        Args:
          x: the residual stream.
          rope, cache, layer, batch, max_query_len: passed to `Attention`.
        """
        x, cache = self.attend(x, rope, cache, layer, batch, max_query_len=max_query_len)
        return self.feed_forward(x), cache

    def attend(
        self,
        x: Float[Array, "T E"],
        rope: tuple[Float[Array, "T half"], Float[Array, "T half"]] | None,
        cache: KVCache | None,
        layer: Int[Array, ""],
        batch: TokenBatch | SegmentBatch,
        *,
        max_query_len: int,
    ) -> tuple[Float[Array, "T E"], KVCache | None]:
        """Returns the residual stream after the attention, and the cache. The arguments are those of a block."""
        with jax.named_scope("attention"):
            normed = x if self.attention_norm is None else self.attention_norm(x)
            attended, cache = self.attention(normed, rope, cache, layer, batch, max_query_len=max_query_len)
            return self._residual(x, attended, self.attention_post_norm), cache

    def feed_forward(self, x: Float[Array, "T E"]) -> Float[Array, "T E"]:
        """Returns the residual stream after the MLP, given the stream after the attention."""
        with jax.named_scope("mlp"):
            normed = x if self.mlp_norm is None else self.mlp_norm(x)
            return self._residual(x, self.mlp(normed), self.mlp_post_norm)

    def _residual(
        self, x: Float[Array, "T E"], update: Float[Array, "T E"], post_norm: RMSNorm | None
    ) -> Float[Array, "T E"]:
        # XLA sums over the tensor axis here, in float32: once for the attention and once for the MLP.
        update = self.placement.constrain(update, "tokens", None).astype(x.dtype)
        return x + (update if post_norm is None else post_norm(update))
