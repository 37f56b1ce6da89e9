"""The Llama family: Llama 2 and 3.x, SmolLM 1 and 2, TinyLlama (arXiv 2307.09288, 2407.21783).

Pre-norm decoder: RMSNorm, grouped-query attention with RoPE, SwiGLU, optionally a tied head.
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
    """A Llama.

    Attributes:
      rope: rotary embedding of every layer.
      attention_bias, mlp_bias: biases of all their projections.
    """

    rope: Rope
    attention_bias: bool
    mlp_bias: bool


class Llama(Decoder[LlamaConfig]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(config.rope, qkv_bias=config.attention_bias, out_bias=config.attention_bias),
            mlp_norm=self.norm(),
            mlp=self.gated_mlp("silu", bias=config.mlp_bias),
            placement=self.placement,
        )
