"""Qwen 3, dense."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, shared_and_rope
from ryzjax.checkpoint.families.qwen import qwen_windows
from ryzjax.models.qwen3 import Qwen3Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Qwen3Config:
    shared, rope = shared_and_rope(hf, theta=10000.0)
    return Qwen3Config(
        rope=rope,
        windows=qwen_windows(hf.fields, shared["num_layers"]),
        attention_bias=hf.fields.boolean("attention_bias", default=False),
        **shared,
    )


FAMILY = HFFamily(
    name="qwen3",
    architectures={"Qwen3ForCausalLM": "qwen3"},
    read=_read,
    weight=hf_modules(),
    defaults={"head_dim": 128, "max_window_layers": 28, "sliding_window": 4096},
)
