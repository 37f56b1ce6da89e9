"""Gemma 2."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, layer_windows
from ryzjax.checkpoint.families.gemma import GEMMA_MODULES, gemma_shared_fields, softcap
from ryzjax.checkpoint.families.rope import rope_from_hf, scaled_max_position
from ryzjax.models.gemma2 import Gemma2Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Gemma2Config:
    fields = hf.fields
    shared, activation = gemma_shared_fields(hf)
    rope = rope_from_hf(fields, head_dim=shared["head_dim"], max_position=shared["max_position"], theta=10000.0)
    shared["max_position"] = scaled_max_position(rope, shared["max_position"])
    windows, _ = layer_windows(fields, shared["num_layers"], is_sliding=lambda layer: layer % 2 == 0)
    return Gemma2Config(
        rope=rope,
        windows=windows,
        query_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        attention_softcap=softcap(fields, "attn_logit_softcapping"),
        logit_softcap=softcap(fields, "final_logit_softcapping"),
        activation=activation,
        attention_bias=fields.boolean("attention_bias", default=False),
        **shared,
    )


FAMILY = HFFamily(
    name="gemma2",
    architectures={"Gemma2ForCausalLM": "gemma2"},
    read=_read,
    weight=hf_modules(GEMMA_MODULES),
    defaults={
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
