"""Gemma 3: the text models, and the text part of the multimodal ones."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, layer_windows
from ryzjax.checkpoint.families.gemma import GEMMA_MODULES, gemma_shared_fields, softcap
from ryzjax.checkpoint.families.rope import layer_ropes_from_hf
from ryzjax.models.gemma3 import Gemma3Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> Gemma3Config:
    fields = hf.fields
    shared, activation = gemma_shared_fields(hf)
    fields.ignore("sliding_window_pattern", "_sliding_window_pattern")
    pattern_key = "sliding_window_pattern" if fields.has("sliding_window_pattern") else "_sliding_window_pattern"
    pattern = fields.integer(pattern_key, default=6)
    windows, layer_types = layer_windows(fields, shared["num_layers"], is_sliding=lambda i: (i + 1) % pattern != 0)
    ropes = layer_ropes_from_hf(
        fields,
        layer_types,
        head_dim=shared["head_dim"],
        max_position=shared["max_position"],
        theta=1e6,
        sliding_theta=10000.0,
        sliding_theta_key="rope_local_base_freq",
    )
    return Gemma3Config(
        ropes=ropes,
        windows=windows,
        query_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        logit_softcap=softcap(fields, "final_logit_softcapping"),
        activation=activation,
        attention_bias=fields.boolean("attention_bias", default=False),
        **shared,
    )


FAMILY = HFFamily(
    name="gemma3",
    architectures={"Gemma3ForCausalLM": "gemma3_text", "Gemma3ForConditionalGeneration": "gemma3"},
    read=_read,
    weight=hf_modules(GEMMA_MODULES),
    # Configs of the multimodal models list only the values that differ from these.
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
    text_config="text_config",
    prefixes=("model.", "language_model.model.", "model.language_model."),
    ignored=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)
