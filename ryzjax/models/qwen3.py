"""Qwen 3 (Yang et al., arXiv 2505.09388): a Llama with a norm on each query and key head."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Qwen3", "Qwen3Config"]


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(ModelConfig):
    """A Qwen 3.

    Attributes:
      rope: rotary embedding of every layer.
      windows: tokens a query of each layer sees, itself included; None for all.
      attention_bias: biases of the attention's projections.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    attention_bias: bool


class Qwen3(Decoder[Qwen3Config]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
