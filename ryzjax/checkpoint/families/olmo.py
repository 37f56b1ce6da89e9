"""Weight names that the OLMo families share. Their norms come after attention and MLP, not before."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.families.base import LAYER_MODULES

__all__ = ["OLMO_MODULES"]

OLMO_MODULES: Mapping[str, str] = {
    **LAYER_MODULES,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Our name of a module in a layer -> Hugging Face's name."""
