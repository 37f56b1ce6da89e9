"""Config fields and weight names that the Gemma families share."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families.base import LAYER_MODULES, HFConfig, SharedFields, shared_fields
from ryzjax.layers.glu import Activation

__all__ = ["GEMMA_MODULES", "gemma_shared_fields", "softcap"]

GEMMA_MODULES: Mapping[str, str] = {
    **LAYER_MODULES,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Our name of a module in a layer -> Hugging Face's name."""


def gemma_shared_fields(hf: HFConfig) -> tuple[SharedFields, Activation]:
    """Reads `shared_fields`, with a tied head by default, and the MLP's activation."""
    hf.fields.ignore("hidden_act")  # old configs have both keys; transformers reads only hidden_activation
    names: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}
    activation = hf.fields.choice("hidden_activation", names, default="gelu_pytorch_tanh")
    return shared_fields(hf, tie_embeddings=True), activation


def softcap(fields: ConfigFields, key: str) -> float | None:
    """Reads the bound of a soft cap (cap * tanh(x / cap)); None if it is absent or null."""
    return fields.number(key) if fields.has(key) else None
