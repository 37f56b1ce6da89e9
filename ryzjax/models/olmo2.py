"""OLMo 2 (OLMo Team, arXiv 2501.00656).

A Llama with norms after the attention and the MLP instead of before them, and with norms over all query heads and over
all key heads together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Olmo2", "Olmo2Config"]


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(ModelConfig):
    """The config of OLMo 2.

    Attributes:
      rope: The rotary embedding of all layers.
      attention_bias: Whether the projections of the attention have biases.
    """

    rope: Rope
    attention_bias: bool


class Olmo2(Decoder[Olmo2Config]):
    """The decoder of OLMo 2."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention=self.attention(
                config.rope,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                qk_norm="projection",
            ),
            attention_post_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            mlp_post_norm=self.norm(),
            placement=self.placement,
        )
