"""model_config_from_hf: real files, both spellings of RoPE, and configs that must be refused."""

from __future__ import annotations

import json

import pytest

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.errors import ConfigError, UnsupportedModelError
from ryzjax.layers.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from ryzjax.models.registry import family_of
from tests.shared import SHARED, needs_shared

RAW: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def with_(**changes: object) -> dict[str, object]:
    return {**RAW, **changes}


def without(*keys: str) -> dict[str, object]:
    return {key: value for key, value in RAW.items() if key not in keys}


def test_reads_every_field():
    config = model_config_from_hf(with_(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=16))
    assert (family_of(config), config.dtype) == ("llama", "bfloat16")
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (512, 64, 172)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (5, 8, 4, 16)
    assert (config.rms_norm_eps, config.max_position) == (1e-5, 512)
    assert config.tie_embeddings and config.attention_bias and config.mlp_bias
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.rope == Rope(theta=10000.0, rotary_dim=16)


def test_defaults_are_those_of_the_format():
    config = model_config_from_hf(without("num_key_value_heads", "torch_dtype", "bos_token_id", "eos_token_id"))
    assert (config.num_kv_heads, config.head_dim, config.dtype) == (8, 8, "float32")
    assert not (config.tie_embeddings or config.attention_bias or config.mlp_bias)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"rope_theta": 5e5}, Rope(theta=5e5, rotary_dim=8)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5, rotary_dim=8)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5, rotary_dim=8)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            LinearRope(theta=1e4, rotary_dim=8, factor=2.0),
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4}},
            LinearRope(theta=1e4, rotary_dim=8, factor=4.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            Llama3Rope(
                theta=5e5,
                rotary_dim=8,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position=8192,
            ),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "partial_rotary_factor": 0.5},
            DynamicRope(theta=1e4, rotary_dim=4, factor=2.0, original_max_position=512),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}},
            YarnRope(
                theta=1e4,
                rotary_dim=8,
                factor=2.0,
                original_max_position=256,
                beta_fast=32.0,
                beta_slow=1.0,
                attention_factor=1.0693147180559945,
                truncate=True,
            ),
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            Llama3Rope(
                theta=5e5,
                rotary_dim=8,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position=8192,
            ),
        ),
    ],
)
def test_rope_spellings(raw: dict[str, object], expected: Rope):
    assert model_config_from_hf(with_(**raw)).rope == expected


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": -1}}, "beta_fast"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "mrope"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}}, "short_factor"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": None}}, "long_factor"),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 4.0}}, "type"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "truncate": True}}, "truncate"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 0}}, "original"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.4}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default"}, "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    ],
)
def test_bad_rope_is_refused(raw: dict[str, object], named: str):
    with pytest.raises(UnsupportedModelError, match=named):
        model_config_from_hf(with_(**raw))


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
    ],
)
def test_missing_required_field(key: str):
    with pytest.raises(UnsupportedModelError, match=f"{key} is missing"):
        model_config_from_hf(without(key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["MambaForCausalLM"]),
        ("architectures", [["LlamaForCausalLM"]]),
        ("architectures", "LlamaForCausalLM"),
        ("model_type", "mistral"),
        ("hidden_act", "gelu"),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", "64"),
        ("hidden_size", 10**30),
        ("num_attention_heads", 7),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 16),
        ("head_dim", 15),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 10**400),
        ("torch_dtype", "float8_e4m3fn"),
        ("attention_bias", "yes"),
        ("eos_token_id", 512),
        ("eos_token_id", [2, -1]),
        ("bos_token_id", "<s>"),
        ("sliding_window", 4096),
        ("layer_types", ["sliding_attention"] * 5),
        ("attention_multiplier", 0.5),
        ("a_key_of_the_future", None),
        ("auto_map", {"AutoModel": "modeling.Model"}),
        ("rope_interleaved", True),
        ("rope_interleaved", 0),
    ],
)
def test_bad_field_is_named_with_its_value(key: str, value: object):
    with pytest.raises(UnsupportedModelError) as error:
        model_config_from_hf(with_(**{key: value}), source="dir/config.json")
    message = str(error.value)
    assert message.startswith("dir/config.json")
    assert "expected" in message
    if key != "num_attention_heads":  # the error names the field that no longer divides
        assert key in message and repr(value)[:50] in message


def test_model_type_alone_is_enough_and_one_of_the_two_is_needed():
    assert family_of(model_config_from_hf(with_(architectures=None))) == "llama"
    assert family_of(model_config_from_hf(without("model_type"))) == "llama"
    with pytest.raises(UnsupportedModelError, match="model_type is missing"):
        model_config_from_hf(without("model_type", "architectures"))


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "bfloat16"),
        ("torch.float16", "auto", "bfloat16"),
        (None, "auto", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float8_e4m3fn", "float32", "float32"),
    ],
)
def test_dtype(stored: str | None, wanted: str, expected: str):
    assert model_config_from_hf(with_(torch_dtype=stored), dtype=wanted).dtype == expected
    assert model_config_from_hf({**without("torch_dtype"), "dtype": stored}, dtype=wanted).dtype == expected


def test_scalings_that_extend_the_context():
    dynamic = model_config_from_hf(with_(rope_scaling={"type": "dynamic", "factor": 2.0}))
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert (dynamic.max_position, model_config_from_hf(with_(rope_scaling=yarn)).max_position) == (1024, 2048)


def test_unknown_dtype_option():
    with pytest.raises(ConfigError, match="float16"):
        model_config_from_hf(RAW, dtype="float16")


def test_generation_config_takes_precedence():
    config = model_config_from_hf(RAW, {"eos_token_id": [5, 6, 5], "bos_token_id": 3})
    assert (config.eos_token_ids, config.bos_token_id) == ((5, 6), 3)
    assert model_config_from_hf(RAW, {"temperature": 0.6}).eos_token_ids == (2,)
    with pytest.raises(UnsupportedModelError, match=r"generation_config.json: eos_token_id is 999"):
        model_config_from_hf(RAW, {"eos_token_id": 999})


@needs_shared
def test_llama31_8b():
    config = model_config_from_hf(json.loads((SHARED / "configs/llama31_8b.json").read_text()))
    assert (config.num_kv_heads, config.head_dim, config.vocab_size) == (8, 128, 128256)
    assert config.rope == Llama3Rope(
        theta=5e5,
        rotary_dim=128,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )
