"""Mixtral 8x7B and 8x22B."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import (
    LAYER_MODULES,
    HFConfig,
    HFFamily,
    expert_stack,
    hf_modules,
    optional_window,
    shared_and_rope,
)
from ryzjax.checkpoint.families.experts import num_experts, split_experts, top_k
from ryzjax.checkpoint.stored_weight import StoredWeight
from ryzjax.models.config import ModelConfig
from ryzjax.models.mixtral import MixtralConfig

__all__ = ["FAMILY"]


_PLAIN = hf_modules({**LAYER_MODULES, "mlp.router": "block_sparse_moe.gate"})
_EXPERT_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}


def _read(hf: HFConfig) -> MixtralConfig:
    shared, rope = shared_and_rope(hf, theta=1e6)
    experts = num_experts(hf.fields)
    return MixtralConfig(
        rope=rope, window=optional_window(hf.fields), num_experts=experts, top_k=top_k(hf.fields, experts), **shared
    )


def _weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
    expert = split_experts(name)
    if expert is None:
        return _PLAIN(name, config, prefix, available)
    assert isinstance(config, MixtralConfig)
    template = f"{prefix}layers.{expert.layer}.block_sparse_moe.experts.{{expert}}.{_EXPERT_PARTS[expert.part]}.weight"
    return expert_stack(template, config.num_experts)


FAMILY = HFFamily(name="mixtral", architectures={"MixtralForCausalLM": "mixtral"}, read=_read, weight=_weight)
