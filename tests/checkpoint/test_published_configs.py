"""Configs with the keys of published models, including spellings and leftovers of transformers 4."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.checkpoint.hf.save import save_hf
from ryzjax.errors import UnsupportedModelError
from ryzjax.layers.rope import LinearRope, LongRope, Rope, YarnRope
from ryzjax.loading import load_weights
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.test_families import ENTRIES, write_checkpoint

PHI35 = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32064,
}
PHI4_MINI = {
    **PHI35,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
OLMO3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 100278,
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def test_phi():
    config = model_config_from_hf(PHI35)
    assert isinstance(config.rope, LongRope) and config.rope.rotary_dim == 96 and config.window == 262144
    assert config.rope.attention_factor == pytest.approx(1.19024, abs=1e-5)
    mini = model_config_from_hf(PHI4_MINI)
    assert (mini.rope.rotary_dim, mini.head_dim, mini.num_kv_heads) == (96, 128, 8)
    with pytest.raises(UnsupportedModelError, match="full_attn_mod is 2"):
        model_config_from_hf({**PHI4_MINI, "full_attn_mod": 2})


def test_gemma3_takes_what_the_file_leaves_out_from_transformers():
    config = model_config_from_hf(GEMMA3_4B)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert config.windows[:7] == (1024,) * 5 + (None, 1024) and config.eos_token_ids == (1, 106)
    assert config.ropes[0] == Rope(theta=10000.0, rotary_dim=256)
    assert config.ropes[5] == LinearRope(theta=1e6, rotary_dim=256, factor=8.0)
    assert config.dtype == "bfloat16" and config.tie_embeddings and config.query_scale == 256**-0.5


def test_olmo3_scales_its_full_layers_only():
    config = model_config_from_hf(OLMO3)
    assert config.ropes[0] == Rope(theta=500000.0, rotary_dim=128)
    assert isinstance(config.ropes[3], YarnRope) and config.ropes[3].attention_factor == pytest.approx(
        1.20794, abs=1e-5
    )


def test_gpt_oss():
    config = model_config_from_hf(GPT_OSS)
    assert (config.num_experts, config.top_k, config.swiglu_alpha, config.windows[:2]) == (32, 4, 1.702, (128, None))
    assert isinstance(config.rope, YarnRope) and not config.rope.truncate
    with pytest.raises(UnsupportedModelError, match="experts_per_token is 2"):
        model_config_from_hf({**GPT_OSS, "experts_per_token": 2})
    with pytest.raises(UnsupportedModelError, match="quant_method is 'gptq'"):
        model_config_from_hf({**GPT_OSS, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UnsupportedModelError, match="rope_scaling is missing"):
        model_config_from_hf({key: value for key, value in GPT_OSS.items() if key != "rope_scaling"})


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_gemma3(prefix: str, tmp_path: Path):
    import transformers
    from safetensors.numpy import load_file

    alone = tmp_path / "alone"
    alone.mkdir()
    tensors = load_file(write_checkpoint("gemma3", alone) / "model.safetensors")
    text = ENTRIES["gemma3"]["config"]
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps({**whole, "vision_config": {}, "dtype": "float32"}))
    renamed = {name.replace("model.", prefix, 1): value for name, value in tensors.items() if name != "lm_head.weight"}
    tower = prefix.removesuffix("language_model.model.").removesuffix("language_model.")
    renamed |= {f"{tower}vision_tower.patch.weight": np.ones(3, np.float32)}
    save_file(renamed, tmp_path / "model.safetensors")

    def load(folder: Path):
        source = resolve_source(str(folder))
        config = model_config_from_hf(source.config, dtype="float32")
        return load_weights(source, abstract_model(config, Placement(Layout.load("single"))))

    expected = load(alone)
    found = load(tmp_path)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])

    # Only the text model is saved, and transformers reads it.
    source = resolve_source(str(tmp_path))
    model = abstract_model(model_config_from_hf(source.config), Placement(Layout.load("single")))
    saved = tmp_path / "saved"
    get = {name: np.asarray(array) for name, array in found.items()}.__getitem__
    save_hf(saved, model, get, config=source.config, copy_texts=lambda folder: None)
    config = transformers.AutoConfig.from_pretrained(saved)
    assert type(config) is transformers.Gemma3TextConfig and config.architectures == ["Gemma3ForCausalLM"]
    stored = load_file(saved / "model.safetensors")
    assert stored.keys() == {name for name in tensors if name != "lm_head.weight"}
    for name, array in load(saved).items():
        np.testing.assert_array_equal(array, expected[name])
