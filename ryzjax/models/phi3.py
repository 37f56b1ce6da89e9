"""Phi 3 and 3.5 mini and medium, and Phi 4 (Abdin et al., arXiv 2404.14219): a Llama with LongRoPE.

Checkpoints store q, k and v as one matrix, and the gate and up matrices of the MLP as another. The model has them as
separate matrices.
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
    """The config of Phi 3.

    Attributes:
      rope: The rotary embedding of all layers.
      window: The tokens that a query attends to, counting itself; None for all.
    """

    rope: Rope
    window: int | None


class Phi3(Decoder[Phi3Config]):
    """The decoder of Phi 3 and Phi 4."""

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
