"""What the OLMo names share: norms after attention and MLP, none before."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.families.base import LAYER_MODULES

__all__ = ["OLMO_MODULES"]

OLMO_MODULES: Mapping[str, str] = {
    **LAYER_MODULES,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Our module of a layer -> HF's."""
