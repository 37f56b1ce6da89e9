"""Qwen 3 mixture of experts: 30B-A3B, 235B-A22B, Coder."""

from __future__ import annotations

from ryzjax.checkpoint.config_fields import ConfigFields
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
from ryzjax.models.qwen3_moe import Qwen3MoeConfig

__all__ = ["FAMILY"]


_PLAIN = hf_modules({**LAYER_MODULES, "mlp.router": "mlp.gate"})


def _read(hf: HFConfig) -> Qwen3MoeConfig:
    fields = hf.fields
    shared, rope = shared_and_rope(hf, theta=10000.0)
    is_sliding = fields.boolean("use_sliding_window", default=False)
    fields.ignore("sliding_window", "max_window_layers")
    experts = num_experts(fields)
    if not fields.boolean("use_qk_norm", default=True):
        raise fields.fail("use_qk_norm", "true or absent", remedy="Qwen 3 always has norms on queries and keys.")
    return Qwen3MoeConfig(
        rope=rope,
        window=optional_window(fields) if is_sliding else None,
        attention_bias=fields.boolean("attention_bias", default=False),
        is_moe_layer=_moe_layers(fields, shared["num_layers"]),
        expert_size=fields.integer("moe_intermediate_size", high=2**24),
        num_experts=experts,
        top_k=top_k(fields, experts),
        normalize_top_k=fields.boolean("norm_topk_prob", default=False),
        **shared,
    )


def _moe_layers(fields: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    step = fields.integer("decoder_sparse_step", default=1)
    dense = fields.value("mlp_only_layers") or []
    if not isinstance(dense, list) or any(not isinstance(i, int) or not 0 <= i < num_layers for i in dense):
        raise fields.fail("mlp_only_layers", f"a list of layers from 0 to {num_layers - 1}", remedy="Fix the config.")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))


def _weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
    expert = split_experts(name)
    if expert is None:
        return _PLAIN(name, config, prefix, available)
    assert isinstance(config, Qwen3MoeConfig)
    template = f"{prefix}layers.{expert.layer}.mlp.experts.{{expert}}.{expert.part}_proj.weight"
    return expert_stack(template, config.num_experts)


FAMILY = HFFamily(name="qwen3_moe", architectures={"Qwen3MoeForCausalLM": "qwen3_moe"}, read=_read, weight=_weight)
