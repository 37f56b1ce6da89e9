"""How Hugging Face spells each family's config and weights: one file a family."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.families import (
    gemma2,
    gemma3,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from ryzjax.checkpoint.families.base import HFConfig, HFFamily

__all__ = ["HF_FAMILIES", "HFConfig", "HFFamily"]

_MODULES = (llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, gemma2, gemma3, phi3, smollm3, olmo2, olmo3, gpt_oss)

HF_FAMILIES: Mapping[str, HFFamily] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
"""Family name -> its spelling."""
