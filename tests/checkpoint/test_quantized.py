"""Quantized checkpoints: bit-exact values in every format and layout."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.quantized.words import pack_words, unpack_words
from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import CheckpointError, LayoutError, UnsupportedModelError
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import LEAVES, QArray, dequantize
from ryzjax.sharding import Layout, Placement
from tests.checkpoint.quantized_files import FORMATS, LINEARS, RAW, Tensors, packed, words, write
from tests.models.paged import sequence_logits

ONE = Placement(Layout.load("single"), jax.devices()[:1])
DOWN = "model.layers.0.mlp.down_proj"
TP2 = Placement(Layout.load("tp"), jax.devices()[:2])


def opened(folder: Path, placement: Placement = ONE) -> tuple[AbstractModel, dict[str, jax.Array]]:
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, source.generation, source=source.config_name)
    model = stored_model(source, config, placement)
    return model, load_weights(source, model)


def qarray(model: AbstractModel, weights: dict[str, jax.Array], name: str) -> QArray:
    leaves = {leaf: weights.get(f"{name}.weight.{leaf}") for leaf in LEAVES}
    return QArray(format=model.quantization[name], **leaves)  # pyright: ignore


@pytest.mark.parametrize("placement", [ONE, TP2], ids=["single", "tp2"])
@pytest.mark.parametrize("name", FORMATS)
def test_values_are_bit_exact(name: str, placement: Placement, tmp_path: Path):
    values = write(tmp_path, FORMATS[name])
    if placement is TP2 and name == "hf_fp8_48":
        with pytest.raises(LayoutError, match="groups of 48"):
            opened(tmp_path, placement)
        return
    model, weights = opened(tmp_path, placement)
    assert set(model.quantization) == set(values)
    for linear, wanted in values.items():
        got = np.asarray(dequantize(qarray(model, weights, linear)))
        np.testing.assert_array_equal(got, wanted, err_msg=linear)


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_model_gets_dequantized_weights(name: str, tmp_path: Path):
    values = write(tmp_path, FORMATS[name])
    source = resolve_source(str(tmp_path))
    model = abstract_model(model_config_from_hf(source.config), ONE)
    weights = load_weights(source, model)
    for linear, wanted in values.items():
        np.testing.assert_array_equal(weights[f"{linear}.weight"], wanted, err_msg=linear)


@pytest.mark.parametrize("name", ["gptq_act_order", "awq", "packed_int4_asymmetric", "hf_fp8", "float8_tensor"])
def test_logits_are_those_of_the_dequantized_model(name: str, tmp_path: Path):
    write(tmp_path, FORMATS[name])
    source = resolve_source(str(tmp_path))
    plain = abstract_model(model_config_from_hf(source.config), ONE)
    tokens = [(5 * i) % 96 for i in range(24)]

    def logits(model: AbstractModel, weights: dict[str, jax.Array]) -> np.ndarray:
        return sequence_logits(model, tuple(weights.values()), tokens, prompt_len=20, chunk=20)

    wanted = logits(plain, load_weights(source, plain))
    for placement in (ONE, TP2):
        np.testing.assert_allclose(logits(*opened(tmp_path, placement)), wanted, atol=3e-4 * np.abs(wanted).max())


def test_fused_projections_are_split(tmp_path: Path):
    """Phi 3 stores q, k and v as one matrix, and gate and up as another."""
    rng = np.random.default_rng(1)
    pack = packed(symmetric=False)
    qkv, gate_up = pack(rng, 128, 64), pack(rng, 256, 64)
    raw = {**RAW, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False}

    def fuse(tensors: Tensors) -> None:
        for name in list(tensors):
            if any(f".{part}_proj." in name for part in ("q", "k", "v", "gate", "up")):
                del tensors[name]
        for module, matrix in (("self_attn.qkv_proj", qkv), ("mlp.gate_up_proj", gate_up)):
            tensors.update({f"model.layers.0.{module}.{ending}": t for ending, t in matrix.tensors.items()})

    write(tmp_path, FORMATS["packed_int4_asymmetric"], raw, fuse)
    model, weights = opened(tmp_path)
    parts = {
        "attention.q": qkv.values[:64],
        "attention.k": qkv.values[64:96],
        "attention.v": qkv.values[96:],
        "mlp.gate": gate_up.values[:128],
        "mlp.up": gate_up.values[128:],
    }
    for linear, wanted in parts.items():
        got = dequantize(qarray(model, weights, f"layers.0.{linear}"))
        np.testing.assert_array_equal(got, wanted, err_msg=linear)


def test_modules_that_the_config_ignores_stay_plain(tmp_path: Path):
    def unquantize(tensors: Tensors) -> None:
        for ending in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{DOWN}.{ending}"]
        tensors[f"{DOWN}.weight"] = np.ones((64, 128), np.float16)

    values = write(tmp_path, FORMATS["gptq"], edit=unquantize)
    model, weights = opened(tmp_path)
    assert set(model.quantization) == set(values) - {"layers.0.mlp.down"}
    assert weights["layers.0.mlp.down.weight"].dtype == jnp.float32


def test_the_config_may_be_in_quantize_config_json(tmp_path: Path):
    values = write(tmp_path, FORMATS["gptq"])
    raw = json.loads((tmp_path / "config.json").read_text())
    settings = raw.pop("quantization_config")
    settings.pop("quant_method")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert set(opened(tmp_path)[0].quantization) == set(values)


def test_the_log_says_which_layers_stay_quantized(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, FORMATS["awq"])
    with caplog.at_level(logging.INFO, "ryzjax"):
        opened(tmp_path)
    assert "7 layers stay quantized: int4, groups of 32, with zeros" in caplog.text


@pytest.mark.parametrize(
    ("format", "edit", "message"),
    [
        ("gptq", lambda t: t.pop(f"{DOWN}.scales"), r"down_proj\.scales' is missing"),
        ("gptq", lambda t: t.pop(f"{DOWN}.qzeros"), r"down_proj\.qzeros' is missing"),
        ("gptq", lambda t: t.update({f"{DOWN}.qweight": np.zeros((12, 64), np.int32)}), r"qweight.*\[12, 64\].*4 bits"),
        ("gptq", lambda t: t.update({f"{DOWN}.scales": np.zeros((3, 64), np.float16)}), r"qzeros.*\[4, 8\].*\[3, 8\]"),
        ("gptq", lambda t: t.update({f"{DOWN}.g_idx": np.zeros(128, np.int32)}), r"g_idx.*every group 32"),
        ("gptq", lambda t: t.update({f"{DOWN}.scales": np.full((4, 64), np.nan, np.float16)}), "scales.*not finite"),
        ("awq", lambda t: t.update({f"{DOWN}.qzeros": np.zeros((4, 9), np.int32)}), r"qzeros.*\[4, 9\].*\[4, 8\]"),
        (
            "packed_int4",
            lambda t: t.update({f"{DOWN}.weight_packed": np.zeros((64, 12), np.int32)}),
            r"weight_packed.*\[64, 12\].*4 bits",
        ),
        ("packed_int4", lambda t: t.pop(f"{DOWN}.weight_scale"), r"weight_scale' is missing"),
        (
            "float8_rows",
            lambda t: t.update({f"{DOWN}.weight": np.full((64, 128), 0x7F, np.uint8).view(ml_dtypes.float8_e4m3fn)}),
            "float8 weight.*NaN",
        ),
        (
            "float8_rows",
            lambda t: t.update({f"{DOWN}.weight": np.zeros((64, 64), ml_dtypes.float8_e4m3fn)}),
            r"down_proj\.weight.*\[64, 64\].*\[64, 128\]",
        ),
        ("gptq", lambda t: t.update({"model.layers.0.mlp.extra.qweight": np.zeros(1, np.int32)}), "extra.qweight"),
    ],
)
def test_damaged_files(format: str, edit: Callable[[Tensors], object], message: str, tmp_path: Path):
    write(tmp_path, FORMATS[format], edit=edit)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 3}, r"bits is 3; expected 4 or 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'"),
        ({"quant_method": "aqlm"}, "quant_method is 'aqlm'; expected one of gptq"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "format is 'nvfp4"),
        ({"quant_method": "compressed-tensors", "quantization_status": "frozen"}, "quantization_status"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {}}}, "transform_config"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"(": {}}}, "regular expression"),
    ],
)
def test_what_cannot_be_read_is_refused(config: dict[str, object], message: str, tmp_path: Path):
    write(tmp_path, dataclasses.replace(FORMATS["gptq"], config=config))
    with pytest.raises(UnsupportedModelError, match=message):
        opened(tmp_path)


def test_int8_without_a_config_is_refused(tmp_path: Path):
    write(tmp_path, FORMATS["w8a8"])
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    with pytest.raises(CheckpointError, match=r"weight_scale|stored as I8.*quantization_config"):
        opened(tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_packed_words_unpack_to_the_same_values(bits: int, axis: int):
    q = np.random.default_rng(0).integers(0, 2**bits, (24, 40)).astype(np.uint8)
    stored = pack_words(q, bits, axis)
    np.testing.assert_array_equal(stored, words(q, bits) if axis == 1 else words(q.T, bits).T)
    np.testing.assert_array_equal(unpack_words(stored, bits, axis), q)


def test_every_linear_of_the_tiny_model_is_named():
    assert {f"layers.0.{name}" for name in LINEARS} | {"lm_head"} == set(
        abstract_model(model_config_from_hf(RAW), ONE).linears
    )
