"""The Llama family: Llama 2 and 3.x, SmolLM, TinyLlama (Touvron et al., arXiv 2307.09288; arXiv 2407.21783).

Pre-norm decoder: RMSNorm, grouped-query attention with RoPE, SwiGLU, optionally a tied head.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.dims import Float32Array
from ryzjax.layers.attention import Attention
from ryzjax.layers.linear import Linear
from ryzjax.layers.mlp import SwiGLU
from ryzjax.layers.norm import RMSNorm
from ryzjax.layers.weight import Weight
from ryzjax.models.config import ModelConfig, RopeConfig
from ryzjax.ops.embedding import embed
from ryzjax.ops.linear import linear
from ryzjax.ops.rope import llama3_inv_freq, plain_inv_freq, rope_cos_sin
from ryzjax.sharding import Placement

__all__ = ["Llama"]


class Llama(nnx.Module):
    """A Llama decoder. `forward` gives hidden states, `logits` the head, so only the rows that need it pay.

    Args:
      config: shape and maths.
      placement: where weights and activations live.
    """

    def __init__(self, config: ModelConfig, placement: Placement):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.placement = placement
        self.embed = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nnx.List([Block(config, placement) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_embeddings
            else Linear(config.hidden_size, config.vocab_size, in_axis="embed", out_axis="vocab", dtype=dtype)
        )

    def forward(self, batch: TokenBatch, cache: KVCache, *, max_query_len: int) -> tuple[jax.Array, KVCache]:
        """One step over the paged cache.

        Args:
          batch: T tokens of R rows.
          cache: donated by the caller; comes back with this step's keys and values.
          max_query_len: 1 promises that every row decodes.

        Returns:
          Hidden states [T, E] before the final norm, and the cache.
        """
        with jax.named_scope("embed"):
            x = embed(batch.token_ids, self.embed.weight[...])
            x = self.placement.constrain(x, "tokens", None)
        rope = rope_cos_sin(batch.positions, inverse_frequencies(self.config.rope, self.config.head_dim))
        for i, layer in enumerate(self.layers):
            graphdef, weights = nnx.split(layer)
            x, cache = _run_block(graphdef, weights, x, rope, cache, jnp.int32(i), batch, max_query_len)
        return x, cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[S, E] of `forward` -> float32 logits [S, V]."""
        with jax.named_scope("head"):
            table = self.embed.weight if self.lm_head is None else self.lm_head.weight
            return linear(self.final_norm(hidden), table[...])


class Embedding(nnx.Module):
    """The token embedding table, weight [V, E]."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: jnp.dtype):
        self.weight = Weight((vocab_size, hidden_size), dtype, ("vocab", "embed"))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, config: ModelConfig, placement: Placement):
        dtype = jnp.dtype(config.dtype)
        self.placement = placement
        self.attention_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.attention = Attention(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
            dtype=dtype,
            placement=placement,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.mlp = SwiGLU(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            bias=config.mlp_bias,
            dtype=dtype,
            placement=placement,
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
        """[T, E] -> ([T, E], cache); `layer` is a scalar, the index into the stacked cache."""
        with jax.named_scope("attention"):
            normed = self.attention_norm(x)
            attended, cache = self.attention(normed, rope, cache, layer, batch, max_query_len=max_query_len)
            x = self._residual(x, attended)
        with jax.named_scope("mlp"):
            return self._residual(x, self.mlp(self.mlp_norm(x))), cache

    def _residual(self, x: jax.Array, update: jax.Array) -> jax.Array:
        # Reduced over the tensor axis here, in float32, once for attention and once for the MLP.
        return x + self.placement.constrain(update, "tokens", None).astype(x.dtype)


@partial(jax.jit, static_argnums=(0, 7))
def _run_block(
    graphdef: nnx.GraphDef[Block],
    weights: nnx.State,
    x: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    cache: KVCache,
    layer: jax.Array,
    batch: TokenBatch,
    max_query_len: int,
) -> tuple[jax.Array, KVCache]:
    """One block, traced and lowered once for all layers: they differ in weights and in `layer` only.

    XLA inlines the calls, so the layers are as unrolled as if they were traced one by one; start-up is not.
    """
    return nnx.merge(graphdef, weights)(x, rope, cache, layer, batch, max_query_len=max_query_len)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Float32Array:
    """RoPE's inverse frequencies with the config's scaling, [head_dim / 2], computed on the host."""
    plain = plain_inv_freq(head_dim, rope.theta)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return llama3_inv_freq(
            plain,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_max_position=rope.original_max_position,
        )
    return plain
