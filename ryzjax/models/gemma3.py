"""The language model of Gemma 3 (Gemma Team, arXiv 2503.19786).

It differs from Gemma 2 in three ways. Each query and key head has a norm, instead of bounded scores. Five layers with
sliding attention come before each layer with full attention. The two kinds of layers have different RoPE bases.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.glu import Activation
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder
from ryzjax.sharding import Placement

__all__ = ["Gemma3", "Gemma3Config"]


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(ModelConfig):
    """The config of Gemma 3 (text).

    Attributes:
      ropes: The rotary embedding of each layer. Sliding layers share one, and full layers share another.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      query_scale: The factor of the attention scores, query_pre_attn_scalar^-0.5.
      logit_softcap: The bound of the logits; None for no bound.
      activation: The activation function of the MLP.
      attention_bias: Whether the projections of the attention have biases.
    """

    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    query_scale: float
    logit_softcap: float | None
    activation: Activation
    attention_bias: bool


class Gemma3(Decoder[Gemma3Config]):
    """The decoder of Gemma 3."""

    norm_offset = 1.0

    def __init__(self, config: Gemma3Config, placement: Placement):
        super().__init__(config, placement)
        self.embedding_scale = config.hidden_size**0.5
        self.logit_softcap = config.logit_softcap

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(
                config.ropes[layer],
                scale=config.query_scale,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
                qk_norm="head",
            ),
            attention_post_norm=self.norm(),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp(config.activation),
            mlp_post_norm=self.norm(),
            placement=self.placement,
        )
