"""Decoder: what every family is: an embedding, blocks, a norm and a head. A family says what its blocks are."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.errors import ConfigError
from ryzjax.layers.attention import Attention, QKNorm
from ryzjax.layers.block import Block
from ryzjax.layers.glu import Activation, Gate
from ryzjax.layers.linear import Linear, project_weights
from ryzjax.layers.mlp import GatedMLP
from ryzjax.layers.moe import MoE
from ryzjax.layers.norm import RMSNorm
from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.rope import Rope
from ryzjax.layers.weight import Weight
from ryzjax.models.config import ModelConfig
from ryzjax.ops.embedding import embed, embed_quantized
from ryzjax.ops.moe.routing import Routing
from ryzjax.qarray import QFormat
from ryzjax.sharding import Placement

__all__ = ["Decoder", "Embedding"]

Config = TypeVar("Config", bound=ModelConfig)


class Decoder(nnx.Module, Generic[Config]):
    """A decoder. `forward` gives hidden states, `logits` the head, so only the rows that need it pay.

    Args:
      config: shape and maths, of the family's own class.
      placement: where weights and activations live.
    """

    embedding_scale: float | None = None
    """Multiplies the embeddings (Gemma); rounded to the model's dtype first, as the reference does."""
    logit_softcap: float | None = None
    """Bound of the logits, by tanh (Gemma 2)."""
    norm_offset: float = 0.0
    """Of all norms: 1.0 where weights are stored as their distance from one (Gemma)."""

    def __init__(self, config: Config, placement: Placement):
        self.config = config
        self.placement = placement
        self.dtype = jnp.dtype(config.dtype)
        self.embed = Embedding(config.vocab_size, config.hidden_size, self.dtype, placement)
        self.layers = nnx.List([self.block(layer) for layer in range(config.num_layers)])
        self.final_norm = self.norm()
        self.lm_head = (
            None
            if config.tie_embeddings
            else Linear(
                config.hidden_size,
                config.vocab_size,
                in_axis="embed",
                out_axis="vocab",
                dtype=self.dtype,
                placement=placement,
            )
        )

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different ropes of the layers, in the order they come."""
        return tuple(dict.fromkeys(rope for layer in self.layers if (rope := layer.attention.rope) is not None))

    @abstractmethod
    def block(self, layer: int) -> Block:
        """Builds block `layer`, an index from 0."""

    def norm(self) -> RMSNorm:
        """A norm over the hidden dimension."""
        config = self.config
        return RMSNorm(
            config.hidden_size,
            eps=config.rms_norm_eps,
            dtype=self.dtype,
            placement=self.placement,
            offset=self.norm_offset,
        )

    def attention(
        self,
        rope: Rope | None,
        *,
        scale: float | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        qk_norm: QKNorm | None = None,
    ) -> Attention:
        """Attention of the config's shape; the arguments as in Attention, a scale of None is head_dim^-0.5."""
        config = self.config
        return Attention(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope=rope,
            scale=config.head_dim**-0.5 if scale is None else scale,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            window=window,
            softcap=softcap,
            sinks=sinks,
            qk_norm=qk_norm,
            norm_eps=config.rms_norm_eps,
            norm_offset=self.norm_offset,
            dtype=self.dtype,
            placement=self.placement,
        )

    def gated_mlp(self, activation: Activation, *, bias: bool = False) -> GatedMLP:
        """A gated MLP of the config's shape."""
        return GatedMLP(
            hidden_size=self.config.hidden_size,
            intermediate_size=self.config.intermediate_size,
            activation=activation,
            bias=bias,
            dtype=self.dtype,
            placement=self.placement,
        )

    def moe(
        self, *, expert_size: int, num_experts: int, top_k: int, routing: Routing, glu: Gate, bias: bool = False
    ) -> MoE:
        """A mixture of experts; `bias` is of the router and of the experts, the rest as in MoE."""
        return MoE(
            hidden_size=self.config.hidden_size,
            expert_size=expert_size,
            num_experts=num_experts,
            top_k=top_k,
            routing=routing,
            glu=glu,
            router_bias=bias,
            expert_bias=bias,
            dtype=self.dtype,
            placement=self.placement,
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
        x = self.embed_tokens(batch.token_ids)
        tables = self.rope_tables(batch.positions, batch.rope_lengths)
        for i, layer in enumerate(self.layers):
            graphdef, weights = nnx.split(layer)
            rope = None if layer.attention.rope is None else tables[layer.attention.rope]
            x, cache = _run_block(graphdef, weights, x, rope, cache, jnp.int32(i), batch, max_query_len)
        return x, cache

    def rope_tables(self, positions: jax.Array, lengths: jax.Array) -> dict[Rope, tuple[jax.Array, jax.Array]]:
        """cos and sin of T tokens for each rope of the layers; the arguments as of `Rope.cos_sin`."""
        return {rope: rope.cos_sin(positions, lengths) for rope in self.ropes}

    def embed_tokens(self, token_ids: jax.Array) -> jax.Array:
        """[T] -> [T, E], what the first block is given."""
        with jax.named_scope("embed"):
            x = self.embed(token_ids)
            if self.embedding_scale is not None:
                x = x * jnp.asarray(self.embedding_scale, x.dtype)
            return self.placement.constrain(x, "tokens", None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[S, E] of `forward` -> float32 logits [S, V]."""
        with jax.named_scope("head"):
            normed = self.final_norm(hidden)
            logits = self.embed.logits(normed) if self.lm_head is None else self.lm_head(normed)
            return logits if self.logit_softcap is None else self.logit_softcap * jnp.tanh(logits / self.logit_softcap)


class Embedding(nnx.Module):
    """The token embedding table, weight [V, E]; the head too, where it is tied."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: jnp.dtype, placement: Placement):
        self.placement = placement
        self.dtype = dtype
        self.weight: Weight | QuantizedWeight = Weight((vocab_size, hidden_size), dtype, ("vocab", "embed"))

    def quantize(self, name: str, format: QFormat) -> None:
        """Replaces the table by an empty quantized one, with scales of its rows; `name` is for messages."""
        assert isinstance(self.weight, Weight), f"{name} is quantized already"
        if format.kind != "int8" or format.rows != 1 or format.has_zeros or format.has_order:
            raise ConfigError(f"{name!r} cannot be {format}; expected int8 with a scale a row and group")
        metadata = self.weight.get_metadata()
        self.weight = QuantizedWeight(
            name, format, self.weight.shape, metadata["axes"], metadata["units"], self.placement
        )

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """[T] -> [T, E]."""
        if isinstance(self.weight, Weight):
            return embed(token_ids, self.weight[...])
        return embed_quantized(token_ids, self.weight.array(), self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[S, E] -> float32 [S, V]: the table as the head."""
        return project_weights(hidden, (self.weight,), self.placement)[0]


@partial(jax.jit, static_argnums=(0, 7))
def _run_block(
    graphdef: nnx.GraphDef[Block],
    weights: nnx.State,
    x: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    cache: KVCache,
    layer: jax.Array,
    batch: TokenBatch,
    max_query_len: int,
) -> tuple[jax.Array, KVCache]:
    """One block, traced and lowered once for all layers of its kind: they differ in weights and in `layer` only.

    XLA inlines the calls, so the layers are as unrolled as if they were traced one by one; start-up is not.
    """
    x, written = nnx.merge(graphdef, weights)(x, rope, cache, layer, batch, max_query_len=max_query_len)
    assert written is not None
    return x, written
