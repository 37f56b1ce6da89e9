"""Mixtral (Jiang et al., arXiv 2401.04088): a Mistral with a mixture of experts in place of the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.glu import GLU
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Mixtral", "MixtralConfig"]


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(ModelConfig):
    """The config of Mixtral. `intermediate_size` is the inner dimension of one expert.

    Attributes:
      rope: The rotary embedding of all layers.
      window: The tokens that a query attends to, counting itself; None for all.
      num_experts: The number of experts of a layer.
      top_k: The number of experts that process a token.
    """

    rope: Rope
    window: int | None
    num_experts: int
    top_k: int


class Mixtral(Decoder[MixtralConfig]):
    """The decoder of Mixtral."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, window=config.window),
            mlp_norm=self.norm(),
            mlp=self.moe(
                expert_size=config.intermediate_size,
                num_experts=config.num_experts,
                top_k=config.top_k,
                routing="softmax_normalized",
                glu=GLU("silu"),
            ),
            placement=self.placement,
        )
