"""GPT-OSS (OpenAI, arXiv 2508.10925).

A mixture of experts with biases and a clamped SwiGLU; attention with a learned sink a head; sliding and full
attention take turns; YaRN.
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
    """A GPT-OSS; `intermediate_size` is of one expert.

    Attributes:
      rope: rotary embedding of every layer.
      windows: tokens a query of each layer sees, itself included; None for all.
      attention_bias: biases of the attention's projections.
      num_experts: experts of a layer.
      top_k: experts a token goes to.
      swiglu_alpha, swiglu_limit: see `ClampedSwiGLU`.
    """

    rope: Rope
    windows: tuple[int | None, ...]
    attention_bias: bool
    num_experts: int
    top_k: int
    swiglu_alpha: float
    swiglu_limit: float


class GptOss(Decoder[GptOssConfig]):
    """See the module's docstring."""

    def block(self, layer: int) -> Block:
        """See `Decoder`."""
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
