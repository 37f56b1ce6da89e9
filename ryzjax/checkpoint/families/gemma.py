"""What the Gemma configs and names share."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.families.base import LAYER_MODULES, HFConfig, SharedFields, shared_fields
from ryzjax.checkpoint.hf.fields import ConfigFields
from ryzjax.layers.glu import Activation

__all__ = ["GEMMA_MODULES", "gemma_shared_fields", "softcap"]

GEMMA_MODULES: Mapping[str, str] = {
    **LAYER_MODULES,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Our module of a layer -> HF's."""


def gemma_shared_fields(hf: HFConfig) -> tuple[SharedFields, Activation]:
    """`shared_fields` with Gemma's tied head, and the MLP's activation."""
    hf.fields.ignore("hidden_act")  # old files have it beside hidden_activation; transformers reads only the latter
    names: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}
    activation = hf.fields.choice("hidden_activation", names, default="gelu_pytorch_tanh")
    return shared_fields(hf, tie_embeddings=True), activation


def softcap(fields: ConfigFields, key: str) -> float | None:
    """A bound by tanh; None where it is null."""
    return fields.number(key) if fields.has(key) else None
