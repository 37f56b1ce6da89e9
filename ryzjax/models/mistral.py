"""Mistral (Jiang et al., arXiv 2310.06825): a Llama with optional sliding-window attention."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Mistral", "MistralConfig"]


@dataclass(frozen=True, kw_only=True)
class MistralConfig(ModelConfig):
    """The config of Mistral.

    Attributes:
      rope: The rotary embedding of all layers.
      window: The tokens that a query attends to, counting itself; None for all.
    """

    rope: Rope
    window: int | None


class Mistral(Decoder[MistralConfig]):
    """The decoder of Mistral."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, window=config.window),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            placement=self.placement,
        )
