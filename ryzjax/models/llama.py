"""The Llama family: Llama 2 and 3.x, SmolLM 1 and 2, TinyLlama (arXiv 2307.09288, 2407.21783).

A pre-norm decoder with RMSNorm, grouped-query attention with RoPE, a SwiGLU MLP, and optionally a tied head.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """The config of Llama.

    Attributes:
      rope: The rotary embedding of all layers.
      attention_bias, mlp_bias: Whether all projections of the attention, or of the MLP, have biases.
    """

    rope: Rope
    attention_bias: bool
    mlp_bias: bool


class Llama(Decoder[LlamaConfig]):
    """The decoder of the Llama family."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, qkv_bias=config.attention_bias, out_bias=config.attention_bias),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu", bias=config.mlp_bias),
            placement=self.placement,
        )
