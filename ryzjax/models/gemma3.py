"""Gemma 3's language model (Gemma Team, arXiv 2503.19786).

Gemma 2 with a norm on each query and key head instead of bounded scores, five sliding layers to a full one, and a
RoPE base for each of the two kinds.
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
    """A Gemma 3 (text).

    Attributes:
      ropes: rotary embedding of each layer: one for the sliding ones, one for the full ones.
      windows: tokens a query of each layer sees, itself included; None for all.
      query_scale: multiplies the scores: query_pre_attn_scalar^-0.5.
      logit_softcap: bound of the logits; None for none.
      activation: of the MLP.
      attention_bias: biases of the attention's projections.
    """

    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    query_scale: float
    logit_softcap: float | None
    activation: Activation
    attention_bias: bool


class Gemma3(Decoder[Gemma3Config]):
    """See the module's docstring."""

    norm_offset = 1.0

    def __init__(self, config: Gemma3Config, placement: Placement):
        super().__init__(config, placement)
        self.embedding_scale = config.hidden_size**0.5
        self.logit_softcap = config.logit_softcap

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
