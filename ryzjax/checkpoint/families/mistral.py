"""Mistral 7B, Nemo, Small and Large."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, optional_window, shared_and_rope
from ryzjax.models.mistral import MistralConfig

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> MistralConfig:
    shared, rope = shared_and_rope(hf, theta=10000.0)
    return MistralConfig(rope=rope, window=optional_window(hf.fields), **shared)


FAMILY = HFFamily(
    name="mistral",
    architectures={"MistralForCausalLM": "mistral"},
    read=_read,
    weight=hf_modules(),
    # Null means no window. transformers takes this default only if the key is missing.
    defaults={"sliding_window": 4096},
)
