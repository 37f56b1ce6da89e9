"""Mixtral (Jiang et al., arXiv 2401.04088): a Mistral whose MLP is a mixture of experts."""

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
    """A Mixtral; `intermediate_size` is of one expert.

    Attributes:
      rope: rotary embedding of every layer.
      window: tokens a query sees, itself included; None for all.
      num_experts: experts of a layer.
      top_k: experts a token goes to.
    """

    rope: Rope
    window: int | None
    num_experts: int
    top_k: int


class Mixtral(Decoder[MixtralConfig]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
