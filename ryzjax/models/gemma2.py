"""Gemma 2 (Gemma Team, arXiv 2408.00118).

Norms on both sides of attention and MLP, all stored as distance from one; scores and logits bounded by tanh;
sliding and full attention take turns; GeGLU; scaled embeddings, which are the head too.
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
    """A Gemma 2.

    Attributes:
      rope: rotary embedding of every layer.
      windows: tokens a query of each layer sees, itself included; None for all.
      query_scale: multiplies the scores: query_pre_attn_scalar^-0.5.
      attention_softcap: bound of the scores; None for none.
      logit_softcap: bound of the logits; None for none.
      activation: of the MLP.
      attention_bias: biases of the attention's projections.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    query_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    activation: Activation
    attention_bias: bool


class Gemma2(Decoder[Gemma2Config]):
    """See the module's docstring."""

    norm_offset = 1.0

    def __init__(self, config: Gemma2Config, placement: Placement):
        super().__init__(config, placement)
        self.embedding_scale = config.hidden_size**0.5
        self.logit_softcap = config.logit_softcap

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
