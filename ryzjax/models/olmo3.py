"""OLMo 3 (OLMo Team, arXiv 2512.13961): an OLMo 2 with three sliding-window layers before each full one."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Olmo3", "Olmo3Config"]


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(ModelConfig):
    """The config of OLMo 3.

    Attributes:
      ropes: The rotary embedding of each layer. It may be scaled in full layers, and is not in sliding ones.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      attention_bias: Whether the projections of the attention have biases.
    """

    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    attention_bias: bool


class Olmo3(Decoder[Olmo3Config]):
    """The decoder of OLMo 3."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
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
