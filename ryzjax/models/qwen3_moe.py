"""Qwen 3 with a mixture of experts (Yang et al., arXiv 2505.09388)."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.layers.block import Block
from ryzjax.layers.glu import GLU
from ryzjax.layers.moe import MoE
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder

__all__ = ["Qwen3Moe", "Qwen3MoeConfig"]


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(ModelConfig):
    """A Qwen 3 MoE; `intermediate_size` is of the dense layers, where there are any.

    Attributes:
      rope: rotary embedding of every layer.
      window: tokens a query sees, itself included; None for all.
      attention_bias: biases of the attention's projections.
      is_moe_layer: whether each layer is a mixture (True) or dense.
      expert_size: inner dimension of one expert.
      num_experts: experts of a layer.
      top_k: experts a token goes to.
      normalize_top_k: scale the weights of the chosen experts to sum to one.
    """

    rope: Rope
    window: int | None
    attention_bias: bool
    is_moe_layer: tuple[bool, ...]
    expert_size: int
    num_experts: int
    top_k: int
    normalize_top_k: bool


class Qwen3Moe(Decoder[Qwen3MoeConfig]):
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
                window=config.window,
                qk_norm="head",
            ),
            mlp_norm=self.norm(),
            mlp=self._mixture() if config.is_moe_layer[layer] else self.gated_mlp("silu"),
            placement=self.placement,
        )

    def _mixture(self) -> MoE:
        config = self.config
        return self.moe(
            expert_size=config.expert_size,
            num_experts=config.num_experts,
            top_k=config.top_k,
            routing="softmax_normalized" if config.normalize_top_k else "softmax",
            glu=GLU("silu"),
        )
