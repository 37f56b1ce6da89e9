"""Qwen 2 and 2.5."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, shared_and_rope
from ryzjax.checkpoint.families.qwen import qwen_windows
from ryzjax.models.qwen2 import Qwen2Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Qwen2Config:
    shared, rope = shared_and_rope(hf, theta=10000.0)
    if not hf.fields.boolean("attention_bias", default=True):
        raise hf.fields.fail("attention_bias", "true or absent", remedy="Qwen 2 always has biases on q, k and v.")
    return Qwen2Config(rope=rope, windows=qwen_windows(hf.fields, shared["num_layers"]), **shared)


FAMILY = HFFamily(
    name="qwen2",
    architectures={"Qwen2ForCausalLM": "qwen2"},
    read=_read,
    weight=hf_modules(),
    defaults={"max_window_layers": 28, "sliding_window": 4096},
)
