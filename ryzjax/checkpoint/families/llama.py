"""Llama 2 and 3.x, SmolLM 1 and 2, TinyLlama."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, shared_and_rope
from ryzjax.models.llama import LlamaConfig

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> LlamaConfig:
    fields = hf.fields
    shared, rope = shared_and_rope(hf, theta=10000.0)
    if fields.value("layer_types") not in (None, ["full_attention"] * shared["num_layers"]):
        expected = f"'full_attention' {shared['num_layers']} times (num_hidden_layers)"
        raise fields.fail("layer_types", expected, remedy="Llama has no sliding layers.")
    return LlamaConfig(
        rope=rope,
        attention_bias=fields.boolean("attention_bias", default=False),
        mlp_bias=fields.boolean("mlp_bias", default=False),
        **shared,
    )


FAMILY = HFFamily(name="llama", architectures={"LlamaForCausalLM": "llama"}, read=_read, weight=hf_modules())
