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
    """The config of Qwen 3 MoE. `intermediate_size` is the inner dimension of the dense layers.

    Attributes:
      rope: The rotary embedding of all layers.
      window: The tokens that a query attends to, counting itself; None for all.
      attention_bias: Whether the projections of the attention have biases.
      is_moe_layer: For each layer, whether its MLP is a mixture of experts (True) or dense.
      expert_size: The inner dimension of one expert.
      num_experts: The number of experts of a layer.
      top_k: The number of experts that process a token.
      normalize_top_k: Whether the weights of the chosen experts are scaled to sum to one.
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
    """The decoder of Qwen 3 MoE."""

    def block(self, layer: int) -> Block:
        """Builds layer `layer`."""
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
