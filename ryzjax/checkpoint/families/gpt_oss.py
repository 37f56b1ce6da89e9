"""GPT-OSS 20B and 120B, with experts in MXFP4, as published, or plain."""

from __future__ import annotations

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families.base import (
    LAYER_MODULES,
    HFConfig,
    HFFamily,
    hf_modules,
    layer_windows,
    shared_and_rope,
)
from ryzjax.checkpoint.families.experts import num_experts, split_experts, top_k
from ryzjax.checkpoint.mxfp4 import Mxfp4Rows
from ryzjax.checkpoint.stored_weight import StoredWeight, TensorRows, WholeTensors
from ryzjax.models.config import ModelConfig
from ryzjax.models.gpt_oss import GptOssConfig

__all__ = ["FAMILY"]


_PLAIN = hf_modules({**LAYER_MODULES, "mlp.router": "mlp.router"})


def _read(hf: HFConfig) -> GptOssConfig:
    fields = hf.fields
    if not fields.has("rope_parameters") and not fields.has("rope_scaling"):
        raise fields.fail("rope_scaling", "GPT-OSS's YaRN parameters", remedy="Re-export the model.")
    shared, rope = shared_and_rope(hf, theta=150000.0)
    windows, _ = layer_windows(fields, shared["num_layers"], is_sliding=lambda layer: layer % 2 == 0)
    experts = num_experts(fields)
    chosen = top_k(fields, experts)
    if fields.integer("experts_per_token", default=chosen) != chosen:
        raise fields.fail("experts_per_token", f"{chosen}, as num_experts_per_tok says", remedy="Keep one of the two.")
    _check_quantization(fields)
    fields.ignore("initial_context_length")  # repeats the original context of rope_scaling
    return GptOssConfig(
        rope=rope,
        windows=windows,
        attention_bias=fields.boolean("attention_bias", default=True),
        num_experts=experts,
        top_k=chosen,
        swiglu_alpha=fields.number("swiglu_alpha"),
        swiglu_limit=fields.number("swiglu_limit"),
        **shared,
    )


def _check_quantization(fields: ConfigFields) -> None:
    block = fields.block("quantization_config")
    if block is not None and block.value("quant_method") != "mxfp4":
        raise block.fail(
            "quant_method", "'mxfp4' or no quantization", remedy="Use the original checkpoint or a plain one."
        )


def _weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
    if name.endswith(".attention.sinks"):
        return WholeTensors((f"{prefix}{name.removesuffix('attention.sinks')}self_attn.sinks",))
    expert = split_experts(name)
    if expert is None:
        return _PLAIN(name, config, prefix, available)
    # Gate and up are interleaved: the even and the odd rows of one matrix.
    rows, part = {
        "gate": (slice(0, None, 2), "gate_up_proj"),
        "up": (slice(1, None, 2), "gate_up_proj"),
        "down": (slice(0, None), "down_proj"),
    }[expert.part]
    stored = f"{prefix}layers.{expert.layer}.mlp.experts.{part}"
    if expert.leaf == "bias":
        return TensorRows(f"{stored}_bias", rows, axis=-1)
    if f"{stored}_blocks" in available:
        return Mxfp4Rows(stored, rows)
    return TensorRows(stored, rows, axis=-2, is_transposed=True)


FAMILY = HFFamily(
    name="gpt_oss",
    architectures={"GptOssForCausalLM": "gpt_oss"},
    read=_read,
    weight=_weight,
    defaults={"sliding_window": 128, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
)
