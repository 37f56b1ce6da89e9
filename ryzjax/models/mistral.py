"""Mistral (Jiang et al., arXiv 2310.06825): a Llama whose attention may slide."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Mistral", "MistralConfig"]


@dataclass(frozen=True, kw_only=True)
class MistralConfig(ModelConfig):
    """A Mistral.

    Attributes:
      rope: rotary embedding of every layer.
      window: tokens a query sees, itself included; None for all.
    """

    rope: Rope
    window: int | None


class Mistral(Decoder[MistralConfig]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, window=config.window),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu"),
            placement=self.placement,
        )
