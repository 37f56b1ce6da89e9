"""Stored scales of an fp8 KV cache: they are read or refused, and the weights beside them load."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.kv_scales import fp8_kv_scales, kv_cache_scheme, kv_scale_tensors, read_kv_scales
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.errors import CheckpointError, ConfigError, UnsupportedModelError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.loading.load import load_weights
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVScales
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.goldens.make_llama3_tiny import CONFIG, write_checkpoint

LAYERS, KV_HEADS = CONFIG["num_hidden_layers"], CONFIG["num_key_value_heads"]
SCALES = KVScales(
    k=np.linspace(0.01, 0.2, LAYERS * KV_HEADS, dtype=np.float32).reshape(LAYERS, KV_HEADS),
    v=np.linspace(0.3, 0.5, LAYERS * KV_HEADS, dtype=np.float32).reshape(LAYERS, KV_HEADS),
)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def source_with(
    folder: Path, tensors: dict[str, np.ndarray], scheme: object = None
) -> tuple[CheckpointSource, ModelConfig]:
    """Returns the checkpoint with additional tensors and with a kv_cache_scheme in its config."""
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    if scheme is not None:
        raw["quantization_config"] = {"quant_method": "compressed-tensors", "kv_cache_scheme": scheme}
    (folder / "config.json").write_text(json.dumps(raw))
    source = resolve_source(str(folder))
    return source, model_config_from_hf(source.config, source.generation)


def test_written_scales_read_back_and_the_weights_still_load(plain: Path):
    before, config = source_with(plain, {})
    model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
    weights = load_weights(before, model)
    assert read_kv_scales(before, config) is None
    source, config = source_with(plain, dict(kv_scale_tensors(SCALES)), kv_cache_scheme())
    read = fp8_kv_scales(source, config, unit=False)
    np.testing.assert_array_equal(read.k, SCALES.k)
    np.testing.assert_array_equal(read.v, SCALES.v)
    for name, array in load_weights(source, model).items():
        np.testing.assert_array_equal(array, weights[name])


def test_one_number_a_layer_or_one_a_head_in_any_float(plain: Path):
    tensors: dict[str, np.ndarray] = {}
    shapes = [(), (1,), (KV_HEADS, 1, 1)]
    dtypes = [np.float16, ml_dtypes.bfloat16, np.float32]
    for layer, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        for i, name in enumerate("kv"):
            value = np.full(shape, 0.25 * (layer + 1) + i).astype(dtype)
            tensors[f"model.layers.{layer}.self_attn.{name}_scale"] = value
    read = read_kv_scales(*source_with(plain, tensors))
    assert read is not None and read.k.dtype == read.v.dtype == np.float32
    np.testing.assert_array_equal(read.k, np.repeat([[0.25], [0.5], [0.75]], KV_HEADS, axis=1))
    np.testing.assert_array_equal(read.v, read.k + 1)


def changed(**values: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns the tensors of SCALES with those of layer 1 replaced. None leaves a tensor out."""
    tensors = dict(kv_scale_tensors(SCALES))
    for name, value in values.items():
        del tensors[f"model.layers.1.self_attn.{name}"]
        if value is not None:
            tensors[f"model.layers.1.self_attn.{name}"] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(v_scale=None), "layer 1 has no v_scale; expected one for keys and one for values in each of 3 layers"),
        ({"model.layers.7.self_attn.k_scale": np.ones(1, np.float32)}, "layer 0 has no k_scale"),
        (
            changed() | {"model.layers.7.self_attn.k_scale": np.ones(1, np.float32)},
            "layer 7 has a k_scale; expected one",
        ),
        (changed(k_scale=np.ones(3, np.float32)), r"'model.layers.1.self_attn.k_scale' is F32 \[3\]; expected one"),
        (changed(k_scale=np.ones((2, 2), np.float32)), r"is F32 \[2, 2\]; expected one float, or \[4\] floats"),
        (changed(k_scale=np.ones(4, np.int8)), r"is I8 \[4\]"),
        (
            changed(k_scale=np.array([1, 2, 0, 1], np.float32)),
            "has values from 0.0 to 2.0; expected finite scales above zero",
        ),
        (changed(v_scale=np.array(np.nan, np.float32)), "has values from nan to nan"),
        (changed(v_scale=np.array(-1, np.float32)), "has values from -1.0 to -1.0"),
    ],
)
def test_damaged_scales(plain: Path, tensors: dict[str, np.ndarray], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_kv_scales(*source_with(plain, tensors))


def test_missing_scales_are_refused_without_the_unit_option(plain: Path):
    source, config = source_with(plain, {})
    with pytest.raises(ConfigError, match=r"no k_scale and v_scale tensors; serve .*kv_dtype=int8.*--kv-scale-unit"):
        fp8_kv_scales(source, config, unit=False)
    unit = fp8_kv_scales(source, config, unit=True)
    np.testing.assert_array_equal(unit.k, np.ones((LAYERS, KV_HEADS)))
    np.testing.assert_array_equal(unit.v, np.ones((LAYERS, KV_HEADS)))


def test_placeholder_scales_are_refused_without_the_unit_option(plain: Path):
    ones = np.ones((LAYERS, KV_HEADS), np.float32)
    source, config = source_with(plain, dict(kv_scale_tensors(KVScales(k=ones, v=ones))))
    with pytest.raises(ConfigError, match=r"are 1\.0: a placeholder, which costs quality; .*--kv-scale-unit"):
        fp8_kv_scales(source, config, unit=False)
    assert (fp8_kv_scales(source, config, unit=True).v == 1).all()
    source, config = source_with(plain, dict(kv_scale_tensors(KVScales(k=ones, v=2 * ones))))
    assert (fp8_kv_scales(source, config, unit=False).v == 2).all()


@pytest.mark.parametrize("change", [{"type": "int"}, {"num_bits": 4}, {"dynamic": True}, {"symmetric": False}])
def test_scales_of_another_cache_are_refused(plain: Path, change: dict[str, object]):
    source, config = source_with(plain, dict(kv_scale_tensors(SCALES)), kv_cache_scheme() | change)
    with pytest.raises(UnsupportedModelError, match=rf"kv_cache_scheme.*{next(iter(change))}.*--kv-scale-unit"):
        fp8_kv_scales(source, config, unit=False)


def test_the_scheme_is_one_that_compressed_tensors_reads():
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="needs compressed-tensors")
    scheme = quantization.QuantizationArgs(**kv_cache_scheme())
    assert (scheme.num_bits, scheme.type, scheme.dynamic) == (8, "float", False)


def test_converted_models_have_no_scales(plain: Path, tmp_path: Path):
    from ryzjax.loading.orbax import save_converted

    source, config = source_with(plain, dict(kv_scale_tensors(SCALES)))
    model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
    save_converted(tmp_path / "out", source, config, dummy_weights(model.weights, 0))
    with pytest.raises(ConfigError, match="no k_scale and v_scale tensors; serve safetensors"):
        fp8_kv_scales(resolve_source(str(tmp_path / "out")), config, unit=False)
