"""Qwen 2 and 2.5 (Yang et al., arXiv 2407.10671, 2412.15115): a Llama with biases on q, k and v."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Qwen2", "Qwen2Config"]


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(ModelConfig):
    """The config of Qwen 2.

    Attributes:
      rope: The rotary embedding of all layers.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
    """

    rope: Rope
    windows: tuple[int | None, ...]


class Qwen2(Decoder[Qwen2Config]):
    """The decoder of Qwen 2 and 2.5."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, qkv_bias=True, window=config.windows[layer]),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            placement=self.placement,
        )
