"""PEFT directories without the peft package: adapters are written and read back, and errors are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint.peft.config import CONFIG_FILE
from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.checkpoint.peft.tensor_names import WEIGHTS_FILE
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.errors import CheckpointError, ConfigError, RyzJAXError, UnsupportedModelError
from ryzjax.lora import Adapter, LoraConfig, LoraWeights, delta
from ryzjax.lora.adapter import BaseQuantization
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS

HEAD = "base_model.model.model.layers.0.self_attn.q_proj"


def model_of(family: str) -> AbstractModel:
    return abstract_model(CONFIGS[family], Placement(Layout.load("single")))


def random_adapter(model: AbstractModel, config: LoraConfig) -> Adapter:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    weights = {}
    for layer in config.choose(model.linears):
        n, k = model.linears[layer]
        rank = config.rank_of(layer)
        magnitude = array(n) if config.use_dora else None
        weights[layer] = LoraWeights(a=array(rank, k), b=array(n, rank), magnitude=magnitude)
    return Adapter(config=config, weights=weights, base_model="org/base")


def assert_same_function(one: Adapter, other: Adapter) -> None:
    for layer in set(other.weights) - set(one.weights):  # one part of a fused layer has no adapter
        assert not np.any(other.weights[layer].b)
    for layer, weights in one.weights.items():
        again = other.weights[layer]
        np.testing.assert_allclose(
            delta(again, other.config.scale_of(layer)), delta(weights, one.config.scale_of(layer)), rtol=1e-5, atol=1e-5
        )
        if weights.magnitude is not None and again.magnitude is not None:
            np.testing.assert_array_equal(again.magnitude, weights.magnitude)
        else:
            assert weights.magnitude is again.magnitude is None


CONFIGS_OF_ADAPTERS = {
    "plain": LoraConfig(rank=3, alpha=5.0),
    "some layers, patterns": LoraConfig(
        rank=4,
        alpha=8.5,
        targets=("attention.q", "layers.1.mlp.down"),
        rank_pattern={r"layers\.1\.attention\.q": 2},
        alpha_pattern={"down": 3.0},
        use_rslora=True,
        dropout=0.1,
    ),
    "dora": LoraConfig(rank=2, use_dora=True, targets=("q", "k", "v", "gate", "up")),
}


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3"])
@pytest.mark.parametrize("name", CONFIGS_OF_ADAPTERS)
def test_a_written_adapter_reads_back_the_same(family: str, name: str, tmp_path: Path):
    model = model_of(family)
    adapter = random_adapter(model, CONFIGS_OF_ADAPTERS[name])
    write_adapter(tmp_path / "a", adapter, model, base_model="org/base")
    again = read_adapter(tmp_path / "a", model)
    assert again.base_model == "org/base" and again.config.dropout == adapter.config.dropout
    assert again.config.choose(model.linears) == tuple(again.weights)
    assert_same_function(adapter, again)
    if family != "phi3":  # joined matrices have their own ranks
        assert set(again.weights) == set(adapter.weights)
        for layer, weights in adapter.weights.items():
            np.testing.assert_array_equal(again.weights[layer].a, weights.a)
            assert again.config.scale_of(layer) == adapter.config.scale_of(layer)


def test_fused_layers_with_one_a_keep_their_rank(tmp_path: Path):
    model = model_of("phi3")
    adapter = random_adapter(model, LoraConfig(rank=3, targets=("q", "k", "v")))
    shared = {
        layer: replace(weights, a=adapter.weights[layer.replace(layer[-1], "q")].a)
        for layer, weights in adapter.weights.items()
    }
    write_adapter(tmp_path, replace(adapter, weights=shared), model, base_model="base")
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    assert {array.shape[0] for name, array in tensors.items() if "lora_A" in name} == {3}
    assert_same_function(replace(adapter, weights=shared), read_adapter(tmp_path, model))


def test_dora_of_a_part_of_a_fused_layer_cannot_be_written(tmp_path: Path):
    model = model_of("phi3")
    adapter = random_adapter(model, LoraConfig(rank=3, targets=("q",), use_dora=True))
    with pytest.raises(CheckpointError, match="adapt all of its parts"):
        write_adapter(tmp_path, adapter, model, base_model="base")


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_dtypes(dtype: str, step: float, tmp_path: Path):
    model = model_of("llama")
    adapter = random_adapter(model, LoraConfig(rank=3))
    write_adapter(tmp_path, adapter, model, base_model="base", dtype=dtype)
    again = read_adapter(tmp_path, model)
    for layer, weights in adapter.weights.items():
        assert again.weights[layer].b.dtype == jnp.float32
        np.testing.assert_allclose(again.weights[layer].b, weights.b, rtol=step)
    with pytest.raises(ConfigError, match="dtype='int8'"):
        write_adapter(tmp_path, adapter, model, base_model="base", dtype="int8")


@pytest.mark.parametrize("init", ["pissa", "loftq"])
def test_an_adapter_of_a_changed_base_is_not_written(init: str, tmp_path: Path):
    model = model_of("llama")
    adapter = random_adapter(model, LoraConfig(rank=3))
    with pytest.raises(ConfigError, match="changed base"):
        write_adapter(
            tmp_path, replace(adapter, config=replace(adapter.config, init=init)), model, base_model="base"
        )  # fmt: skip


def test_the_base_quantization_is_in_the_safetensors_header(tmp_path: Path):
    model = model_of("llama")
    found = random_adapter(model, CONFIGS_OF_ADAPTERS["plain"])
    write_adapter(tmp_path / "plain", found, model, base_model="org/base")
    rounding = BaseQuantization(weights="nf4", group=64)
    write_adapter(tmp_path / "nf4", replace(found, base_quantization=rounding), model, base_model="org/base")
    assert read_adapter(tmp_path / "plain", model).base_quantization is None
    assert read_adapter(tmp_path / "nf4", model).base_quantization == rounding
    assert (tmp_path / "nf4" / CONFIG_FILE).read_text() == (tmp_path / "plain" / CONFIG_FILE).read_text()
    tensors = load_file(tmp_path / "nf4" / WEIGHTS_FILE)
    assert tensors.keys() == load_file(tmp_path / "plain" / WEIGHTS_FILE).keys()
    save_file(
        tensors, tmp_path / "nf4" / WEIGHTS_FILE, {"ryzjax.base_weights": "int3", "ryzjax.base_weights_group": "64"}
    )
    with pytest.raises(
        CheckpointError, match="its base was quantized to 'int3' in groups of '64'; expected one of int8"
    ):
        read_adapter(tmp_path / "nf4", model)


def test_a_failed_write_keeps_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    before = random_adapter(model, LoraConfig(rank=3))
    write_adapter(tmp_path, before, model, base_model="base")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ryzjax.checkpoint.safetensors_write.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_adapter(tmp_path, random_adapter(model, LoraConfig(rank=5)), model, base_model="base")
    assert_same_function(before, read_adapter(tmp_path, model))
    assert {file.name for file in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def with_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)

    return change


def pickled(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")


def of_other_layers(tensors: dict[str, np.ndarray]) -> None:
    for name in list(tensors):
        tensors[name.replace("layers.1.", "layers.7.")] = tensors.pop(name)


def shallower(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "layers.1." in name]:
        del tensors[name]


BAD: dict[str, tuple[Callable[[Path], object], type[RyzJAXError], str]] = {
    "pickle": (pickled, CheckpointError, "safe_serialization=True"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), CheckpointError, f"no {WEIGHTS_FILE}"),
    "no config": (lambda folder: (folder / CONFIG_FILE).unlink(), CheckpointError, "expected the directory of a PEFT"),
    "not JSON": (lambda folder: (folder / CONFIG_FILE).write_text("{"), CheckpointError, "not valid JSON"),
    "a list": (lambda folder: (folder / CONFIG_FILE).write_text("[]"), CheckpointError, "expected an object"),
    "truncated": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-8]),
        CheckpointError,
        "truncated",
    ),
    "another kind": (with_config(peft_type="IA3"), UnsupportedModelError, "peft_type is 'IA3'; expected 'LORA'"),
    "biases": (with_config(bias="lora_only"), UnsupportedModelError, "bias is 'lora_only'"),
    "bias of B": (with_config(lora_bias=True), UnsupportedModelError, "lora_bias"),
    "transposed": (with_config(fan_in_fan_out=True), UnsupportedModelError, "fan_in_fan_out"),
    "whole modules": (with_config(modules_to_save=["lm_head"]), UnsupportedModelError, "modules_to_save"),
    "replicated layers": (with_config(layer_replication=[[0, 2]]), UnsupportedModelError, "layer_replication"),
    "invocation tokens": (with_config(alora_invocation_tokens=[1]), UnsupportedModelError, "alora_invocation_tokens"),
    "a key of the future": (with_config(twisted=True), UnsupportedModelError, "twisted is True"),
    "pissa": (with_config(init_lora_weights="pissa_niter_4"), UnsupportedModelError, "path_initial_model"),
    "unknown init": (with_config(init_lora_weights="magic"), UnsupportedModelError, "'magic'"),
    "rank": (with_config(r="8"), UnsupportedModelError, "r is '8'"),
    "rank of 0": (with_config(rank_pattern={"q_proj": 0}), UnsupportedModelError, "rank_pattern"),
    "fractional rank": (with_config(rank_pattern={"q_proj": 1.5}), UnsupportedModelError, "rank_pattern"),
    "no regular expression": (with_config(target_modules="("), UnsupportedModelError, "regular expression"),
    "another rank": (with_config(r=5), CheckpointError, r"is \[3, 32\]; expected \[5, 32\].*names another rank"),
    "not targeted": (with_config(target_modules=["k_proj"]), CheckpointError, "does not name"),
    "no B": (
        with_tensors(lambda t: t.pop(f"{HEAD}.lora_B.weight")),
        CheckpointError,
        "has lora_A but no lora_B",
    ),
    "magnitudes without DoRA": (
        with_tensors(lambda t: t.update({f"{HEAD}.lora_magnitude_vector": np.ones(32, np.float32)})),
        CheckpointError,
        "use_dora is false",
    ),
    "DoRA without magnitudes": (with_config(use_dora=True), CheckpointError, "no lora_magnitude_vector"),
    "embeddings": (
        with_tensors(lambda t: t.update({"base_model.model.model.embed_tokens.weight": np.ones((4, 4), np.float32)})),
        CheckpointError,
        "embed_tokens.weight' is no part of a LoRA",
    ),
    "integers": (
        with_tensors(lambda t: t.update({f"{HEAD}.lora_A.weight": np.ones((3, 32), np.int8)})),
        CheckpointError,
        "is I8",
    ),
    "not finite": (
        with_tensors(lambda t: t[f"{HEAD}.lora_A.weight"].__setitem__((0, 0), np.nan)),
        CheckpointError,
        "NaN or infinite",
    ),
    "empty": (with_tensors(lambda t: t.clear()), CheckpointError, "empty"),
    "a deeper base": (with_tensors(of_other_layers), CheckpointError, "no such linear layer.*org/base"),
    "a shallower base": (with_tensors(shallower), CheckpointError, "has no weights for it.*org/base"),
    "a wider base": (
        with_tensors(lambda t: t.update({f"{HEAD}.lora_A.weight": np.ones((3, 64), np.float32)})),
        CheckpointError,
        r"is \[3, 64\]; expected \[3, 32\].*org/base",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path):
    model = model_of("llama")
    write_adapter(tmp_path, random_adapter(model, LoraConfig(rank=3)), model, base_model="org/base")
    read_adapter(tmp_path, model)
    change, error, message = BAD[name]
    change(tmp_path)
    with pytest.raises(error, match=message):
        read_adapter(tmp_path, model)


def test_no_directory(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such directory"):
        read_adapter(tmp_path / "missing", model_of("llama"))


def test_both_spellings_of_the_magnitude_and_keys_without_maths(tmp_path: Path):
    model = model_of("llama")
    adapter = random_adapter(model, LoraConfig(rank=2, use_dora=True))
    write_adapter(tmp_path, adapter, model, base_model="base")

    def old(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith("lora_magnitude_vector.weight")]:
            tensors[name.removesuffix(".weight")] = tensors.pop(name)

    with_tensors(old)(tmp_path)
    with_config(revision="main", peft_version="0.1", twisted=False, eva_config={"rho": 2.0})(tmp_path)
    assert_same_function(adapter, read_adapter(tmp_path, model))


def test_a_tied_head_cannot_be_adapted(tmp_path: Path):
    untied = model_of("llama")
    tied = abstract_model(replace(CONFIGS["llama"], tie_embeddings=True), untied.placement)
    write_adapter(tmp_path, random_adapter(untied, LoraConfig(targets=("lm_head",))), untied, base_model="base")
    with pytest.raises(CheckpointError, match="its head is the embedding"):
        read_adapter(tmp_path, tied)


def test_experts_are_refused(tmp_path: Path):
    model = model_of("qwen3_moe")
    write_adapter(tmp_path, random_adapter(model, LoraConfig(rank=2, targets=("q",))), model, base_model="base")
    path = "base_model.model.model.layers.1.mlp.experts.0.gate_proj"
    with_tensors(lambda t: t.update({f"{path}.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}))(tmp_path)
    with pytest.raises(CheckpointError, match="is an expert"):
        read_adapter(tmp_path, model)
