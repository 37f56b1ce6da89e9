"""GPT-OSS (OpenAI, arXiv 2508.10925).

The MLP is a mixture of experts with biases and a clamped SwiGLU. Each query head has a learned sink. Layers alternate
between sliding and full attention. The rotary embedding is scaled by YaRN.
"""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.glu import ClampedSwiGLU
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["GptOss", "GptOssConfig"]


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ModelConfig):
    """The config of GPT-OSS. `intermediate_size` is the inner dimension of one expert.

    Attributes:
      rope: The rotary embedding of all layers.
      windows: For each layer, the tokens that a query attends to, counting itself; None for all.
      attention_bias: Whether the projections of the attention have biases.
      num_experts: The number of experts of a layer.
      top_k: The number of experts that process a token.
      swiglu_alpha, swiglu_limit: The parameters of `ClampedSwiGLU`.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    attention_bias: bool
    num_experts: int
    top_k: int
    swiglu_alpha: float
    swiglu_limit: float


class GptOss(Decoder[GptOssConfig]):
    """The decoder of GPT-OSS."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
        config = self.config
        return Block(
            attention_norm=self.norm(),
            attention=self.attention(
                config.rope,
                qkv_bias=config.attention_bias,
                out_bias=config.attention_bias,
                window=config.windows[layer],
                sinks=True,
            ),
            mlp_norm=self.norm(),
            mlp=self.moe(
                expert_size=config.intermediate_size,
                num_experts=config.num_experts,
                top_k=config.top_k,
                routing="softmax_of_top",
                glu=ClampedSwiGLU(config.swiglu_alpha, config.swiglu_limit),
                bias=True,
            ),
            placement=self.placement,
        )
