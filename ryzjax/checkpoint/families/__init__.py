"""One file per model family: how Hugging Face spells its config and its weights.

Each file defines `FAMILY`, an `HFFamily` with a function that reads the config and one that maps weight names. `base`
has what most families share, and `rope` reads their rotary embeddings. `gemma`, `olmo`, `qwen` and `experts` have what
a few families share. Model code belongs to `models`, not here.
"""

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
"""Family name -> how Hugging Face spells the family."""
