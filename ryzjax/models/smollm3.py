"""SmolLM 3: a Llama in which every fourth layer has no positions (NoPE)."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["SmolLM3", "SmolLM3Config"]


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(ModelConfig):
    """The config of SmolLM 3.

    Attributes:
      rope: The rotary embedding of the layers that have one.
      is_rope_layer: For each layer, whether it rotates its queries and keys.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      attention_bias, mlp_bias: Whether all projections of the attention, or of the MLP, have biases.
    """

    rope: Rope
    is_rope_layer: tuple[bool, ...]
    windows: tuple[int | None, ...]
    attention_bias: bool
    mlp_bias: bool


class SmolLM3(Decoder[SmolLM3Config]):
    """The decoder of SmolLM 3."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(
                config.rope if config.is_rope_layer[layer] else None,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
            ),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu", bias=config.mlp_bias),
            placement=self.placement,
        )
