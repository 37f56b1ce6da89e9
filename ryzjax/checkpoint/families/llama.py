"""Llama 2 and 3.x, SmolLM 1 and 2, TinyLlama."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, layer_windows, shared_and_rope
from ryzjax.models.llama import LlamaConfig

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> LlamaConfig:
    fields = hf.fields
    shared, rope = shared_and_rope(hf, theta=10000.0)
    windows, _ = layer_windows(fields, shared["num_layers"], is_sliding=lambda layer: False)
    if any(windows):
        raise fields.fail("layer_types", "'full_attention' only", remedy="Llama has no sliding layers.")
    return LlamaConfig(
        rope=rope,
        attention_bias=fields.boolean("attention_bias", default=False),
        mlp_bias=fields.boolean("mlp_bias", default=False),
        **shared,
    )


FAMILY = HFFamily(name="llama", architectures={"LlamaForCausalLM": "llama"}, read=_read, weight=hf_modules())
