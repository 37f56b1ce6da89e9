"""Phi 3 and 3.5 mini and medium, Phi 4 (Abdin et al., arXiv 2404.14219): a Llama with LongRoPE.

Checkpoints store q, k and v, and the MLP's gate and up, as one matrix each; here they are apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Phi3", "Phi3Config"]


@dataclass(frozen=True, kw_only=True)
class Phi3Config(ModelConfig):
    """A Phi 3.

    Attributes:
      rope: rotary embedding of every layer.
      window: tokens a query sees, itself included; None for all.
    """

    rope: Rope
    window: int | None


class Phi3(Decoder[Phi3Config]):
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
