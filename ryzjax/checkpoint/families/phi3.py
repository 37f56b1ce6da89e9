"""Phi 3 and 3.5 mini and medium, Phi 4."""

from __future__ import annotations

import re

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, optional_window, shared_and_rope
from ryzjax.checkpoint.stored_weight import StoredWeight, TensorRows
from ryzjax.errors import UnsupportedModelError
from ryzjax.models.config import ModelConfig
from ryzjax.models.phi3 import Phi3Config

__all__ = ["FAMILY"]


_PLAIN = hf_modules()
_FUSED = re.compile(r"layers\.(\d+)\.(attention\.[qkv]|mlp\.gate|mlp\.up)\.weight")


def _read(hf: HFConfig) -> Phi3Config:
    fields = hf.fields
    # The repositories carry their own modelling code. It is not needed: the model is built into transformers and here.
    fields.ignore("auto_map", "original_max_position_embeddings")
    if fields.boolean("attention_bias", default=False):
        raise fields.fail("attention_bias", "false or absent", remedy="Phi 3 has no biases.")
    shared, rope = shared_and_rope(hf, theta=10000.0, yarn_is_longrope=True)
    if type(rope).__name__ not in ("Rope", "LongRope"):
        raise UnsupportedModelError(f"{fields.source}: rope is {rope}; expected none or longrope scaling for Phi 3")
    return Phi3Config(rope=rope, window=optional_window(fields), **shared)


def _weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
    match = _FUSED.fullmatch(name)
    if match is None:
        return _PLAIN(name, config, prefix, available)
    q, kv, inner = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size
    rows = {
        "attention.q": slice(0, q),
        "attention.k": slice(q, q + kv),
        "attention.v": slice(q + kv, q + 2 * kv),
        "mlp.gate": slice(0, inner),
        "mlp.up": slice(inner, 2 * inner),
    }[match[2]]
    fused = "mlp.gate_up_proj" if match[2].startswith("mlp") else "self_attn.qkv_proj"
    total = 2 * inner if match[2].startswith("mlp") else q + 2 * kv
    return TensorRows(f"{prefix}layers.{match[1]}.{fused}.weight", rows, axis=-2, total=total)


FAMILY = HFFamily(
    name="phi3",
    architectures={"Phi3ForCausalLM": "phi3"},
    read=_read,
    weight=_weight,
    defaults={"original_max_position_embeddings": 4096},
)
