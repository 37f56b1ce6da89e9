"""OLMo 3."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, check_silu, hf_modules, layer_windows, shared_fields
from ryzjax.checkpoint.families.olmo import OLMO_MODULES
from ryzjax.checkpoint.families.rope import layer_ropes_from_hf, scaled_max_position
from ryzjax.models.olmo3 import Olmo3Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Olmo3Config:
    fields, shared = hf.fields, shared_fields(hf)
    check_silu(fields)
    windows, layer_types = layer_windows(fields, shared["num_layers"], is_sliding=lambda i: (i + 1) % 4 != 0)
    ropes = layer_ropes_from_hf(
        fields,
        layer_types,
        head_dim=shared["head_dim"],
        max_position=shared["max_position"],
        theta=500000.0,
        sliding_theta=None,
        sliding_theta_key=None,
    )
    shared["max_position"] = max(scaled_max_position(rope, shared["max_position"]) for rope in ropes)
    return Olmo3Config(
        ropes=ropes, windows=windows, attention_bias=fields.boolean("attention_bias", default=False), **shared
    )


FAMILY = HFFamily(
    name="olmo3",
    architectures={"Olmo3ForCausalLM": "olmo3"},
    read=_read,
    weight=hf_modules(OLMO_MODULES),
    defaults={"sliding_window": 4096},
)
