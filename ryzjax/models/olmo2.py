"""OLMo 2 (OLMo Team, arXiv 2501.00656): norms after attention and MLP, and over whole queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Olmo2", "Olmo2Config"]


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(ModelConfig):
    """An OLMo 2.

    Attributes:
      rope: rotary embedding of every layer.
      attention_bias: biases of the attention's projections.
    """

    rope: Rope
    attention_bias: bool


class Olmo2(Decoder[Olmo2Config]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
