"""OLMo 3 (OLMo Team, arXiv 2512.13961): an OLMo 2 with three sliding layers to a full one."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Olmo3", "Olmo3Config"]


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(ModelConfig):
    """An OLMo 3.

    Attributes:
      ropes: rotary embedding of each layer: full layers may be scaled, sliding ones are not.
      windows: tokens a query of each layer sees, itself included; None for all.
      attention_bias: biases of the attention's projections.
    """

    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    attention_bias: bool


class Olmo3(Decoder[Olmo3Config]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
        config = self.config
        return Block(
            attention=self.attention(
                config.ropes[layer],
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
                qk_norm="projection",
            ),
            attention_post_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            mlp_post_norm=self.norm(),
            placement=self.placement,
        )
