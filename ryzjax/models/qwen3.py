"""Qwen 3 (Yang et al., arXiv 2505.09388): a Llama with a norm on each query head and each key head."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Qwen3", "Qwen3Config"]


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(ModelConfig):
    """The config of Qwen 3.

    Attributes:
      rope: The rotary embedding of all layers.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      attention_bias: Whether the projections of the attention have biases.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    attention_bias: bool


class Qwen3(Decoder[Qwen3Config]):
    """The decoder of Qwen 3."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(
                config.rope,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
                qk_norm="head",
            ),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            placement=self.placement,
        )
