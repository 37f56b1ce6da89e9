"""OLMo 2."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, shared_and_rope
from ryzjax.checkpoint.families.olmo import OLMO_MODULES
from ryzjax.models.olmo2 import Olmo2Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Olmo2Config:
    shared, rope = shared_and_rope(hf, theta=10000.0)
    return Olmo2Config(rope=rope, attention_bias=hf.fields.boolean("attention_bias", default=False), **shared)


FAMILY = HFFamily(
    name="olmo2", architectures={"Olmo2ForCausalLM": "olmo2"}, read=_read, weight=hf_modules(OLMO_MODULES)
)
