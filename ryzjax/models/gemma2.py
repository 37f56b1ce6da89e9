"""Gemma 2 (Gemma Team, arXiv 2408.00118).

Norms come before and after the attention and the MLP, and their weights are stored as the distance from one. Attention
scores and logits are bounded by tanh. Layers alternate between sliding and full attention. The MLP is a GeGLU. The
embeddings are scaled, and their table is also the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.glu import Activation
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder
from ryzjax.sharding import Placement

__all__ = ["Gemma2", "Gemma2Config"]


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(ModelConfig):
    """The config of Gemma 2.

    Attributes:
      rope: The rotary embedding of all layers.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      query_scale: The factor of the attention scores, query_pre_attn_scalar^-0.5.
      attention_softcap: The bound of the attention scores; None for no bound.
      logit_softcap: The bound of the logits; None for no bound.
      activation: The activation function of the MLP.
      attention_bias: Whether the projections of the attention have biases.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    query_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    activation: Activation
    attention_bias: bool


class Gemma2(Decoder[Gemma2Config]):
    """The decoder of Gemma 2."""

    norm_offset = 1.0

    def __init__(self, config: Gemma2Config, placement: Placement):
        super().__init__(config, placement)
        self.embedding_scale = config.hidden_size**0.5
        self.logit_softcap = config.logit_softcap

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(
                config.rope,
                scale=config.query_scale,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
                softcap=config.attention_softcap,
            ),
            attention_post_norm=self.norm(),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp(config.activation),
            mlp_post_norm=self.norm(),
            placement=self.placement,
        )
