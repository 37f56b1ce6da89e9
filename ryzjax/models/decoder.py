"""Decoder: the base class of all model families. It has an embedding, blocks, a final norm and a head."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

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
    """A decoder-only transformer. A family subclasses it and builds its blocks in `block`.

    `forward` returns hidden states. `logits` applies the head, so that the caller computes it only for the tokens that
    need logits.

    Args:
      config: The config, of the family's own class.
      placement: The devices of weights and activations.
    """

    embedding_scale: float | None = None
    """The factor of the embeddings (Gemma). It is rounded to the model's dtype first, as the reference does."""
    logit_softcap: float | None = None
    """The bound of the logits, applied by tanh (Gemma 2)."""
    norm_offset: float = 0.0
    """The number that all norms add to their weights: 1.0 if weights are stored as their distance from one (Gemma)."""

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
        """The distinct rotary embeddings of the layers, in the order of their first layers."""
        return tuple(dict.fromkeys(rope for layer in self.layers if (rope := layer.attention.rope) is not None))

    @abstractmethod
    def block(self, layer: int) -> Block:
        """Builds layer `layer`, an index from 0."""

    def norm(self) -> RMSNorm:
        """Builds a norm over the hidden dimension."""
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
        """Builds attention of the config's shape. Arguments are those of `Attention`; `scale` defaults to D^-0.5."""
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
        """Builds a gated MLP of the config's shape."""
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
        """Builds a mixture of experts. `bias` is for router and experts; the other arguments are those of `MoE`."""
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
        """Runs all layers over the tokens of one step, with the paged KV cache.

        Args:
          batch: The T tokens of R rows.
          cache: The KV cache, which the caller donates.
          max_query_len: The largest number of tokens of a row. With 1, every row must be decoding.

        Returns:
          The hidden states [T, E] before the final norm, and the cache with the keys and values of this step.
        """
        x = self.embed_tokens(batch.token_ids)
        tables = self.rope_tables(batch.positions, batch.rope_lengths)
        for i, layer in enumerate(self.layers):
            graphdef, weights = nnx.split(layer)
            rope = None if layer.attention.rope is None else tables[layer.attention.rope]
            x, cache = _run_block(graphdef, weights, x, rope, cache, jnp.int32(i), batch, max_query_len)
        return x, cache

    def rope_tables(
        self, positions: Int[Array, " T"], lengths: Int[Array, " T"]
    ) -> dict[Rope, tuple[Float[Array, "T half"], Float[Array, "T half"]]]:
        """Returns cos and sin for each rotary embedding of the layers.

        Args:
          positions: The position of each token.
          lengths: The length of each token's sequence, by which `LongRope` chooses its rotations.
        """
        return {rope: rope.cos_sin(positions, lengths) for rope in self.ropes}

    def embed_tokens(self, token_ids: Int[Array, " T"]) -> Float[Array, "T E"]:
        """Returns the input of the first layer: the scaled embeddings."""
        with jax.named_scope("embed"):
            x = self.embed(token_ids)
            if self.embedding_scale is not None:
                x = x * jnp.asarray(self.embedding_scale, x.dtype)
            return self.placement.constrain(x, "tokens", None)

    def logits(self, hidden: Float[Array, "S E"]) -> Float[Array, "S V"]:
        """Returns the float32 logits of hidden states from `forward`."""
        with jax.named_scope("head"):
            normed = self.final_norm(hidden)
            logits = self.embed.logits(normed) if self.lm_head is None else self.lm_head(normed)
            return logits if self.logit_softcap is None else self.logit_softcap * jnp.tanh(logits / self.logit_softcap)


class Embedding(nnx.Module):
    """The token embedding table, with a weight [V, E]. It is also the head if the two are tied."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: jnp.dtype, placement: Placement):
        self.placement = placement
        self.dtype = dtype
        self.weight: Weight | QuantizedWeight = Weight((vocab_size, hidden_size), dtype, ("vocab", "embed"))

    def quantize(self, name: str, format: QFormat) -> None:
        """Replaces the table by an empty quantized one with scales for each row. `name` is for error messages."""
        assert isinstance(self.weight, Weight), f"{name} is quantized already"
        if format.rows != 1 or format.scale_dtype == "nested" or format.has_order:
            raise ConfigError(
                f"{name!r} cannot be {format}; expected a scale for each row and group that is not nested, and columns "
                "that are not permuted"
            )
        metadata = self.weight.get_metadata()
        self.weight = QuantizedWeight(
            name, format, self.weight.shape, metadata["axes"], metadata["units"], self.placement
        )

    def __call__(self, token_ids: Int[Array, " T"]) -> Float[Array, "T E"]:
        """Returns the embeddings of token ids."""
        if isinstance(self.weight, Weight):
            return embed(token_ids, self.weight[...])
        return embed_quantized(token_ids, self.weight.array(), self.dtype)

    def logits(self, hidden: Float[Array, "S E"]) -> Float[Array, "S V"]:
        """Returns float32 logits, with the table as the head."""
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
    """Runs one block. All layers of a kind share one trace, because they differ only in their weights and in `layer`.

    XLA inlines the calls, so the compiled layers are as unrolled as if each had been traced. Tracing and lowering are
    not repeated for each layer.
    """
    x, written = nnx.merge(graphdef, weights)(x, rope, cache, layer, batch, max_query_len=max_query_len)
    assert written is not None
    return x, written
