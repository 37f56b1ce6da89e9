"""Adapters merged into whole checkpoints: every written tensor, and the logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.loading.weight_plan import plan_weights
from ryzjax.lora import Adapter, LoraConfig, LoraWeights, adapted, row_norms
from ryzjax.lora.adapter import BaseQuantization, OnLoadWeights
from ryzjax.lora.model import weight_of
from ryzjax.models.abstract import AbstractModel
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.merge import MergedDtype, merge_checkpoint, merged_dtype, quantize_merged
from ryzjax.quantizing.quantize import quantize
from ryzjax.sharding import Layout, Placement
from tests.models.paged import sequence_logits
from tests.models.test_families import write_checkpoint

ONE = Placement(Layout.load("single"), jax.devices()[:1])
TOKENS = [(7 * i) % 48 for i in range(40)]


def opened(source: CheckpointSource) -> tuple[AbstractModel, dict[str, jax.Array]]:
    """Opens a checkpoint as stored, computed in float32."""
    config = model_config_from_hf(source.config, source.generation, dtype="float32")
    model = stored_model(source, config, ONE)
    return model, load_weights(source, model)


def random_adapter(model: AbstractModel, weights: Mapping[str, jax.Array], config: LoraConfig) -> Adapter:
    """An update of about a fifth of each weight."""
    rng = np.random.default_rng(0)
    updates = {}
    for layer in config.choose(model.linears):
        n, k = model.linears[layer]
        rank, norms = config.rank_of(layer), row_norms(weight_of(model, weights, layer))
        a, b = rng.standard_normal((rank, k)) / k**0.5, rng.standard_normal((n, rank)) / rank**0.5
        b *= 0.2 * float(jnp.linalg.norm(norms)) / np.linalg.norm(b @ a) / config.scale_of(layer)
        updates[layer] = LoraWeights(
            a=jnp.asarray(a, jnp.float32),
            b=jnp.asarray(b, jnp.float32),
            magnitude=norms * jnp.asarray(rng.uniform(0.8, 1.2, n), jnp.float32) if config.use_dora else None,
        )
    return Adapter(config=config, weights=updates, base_model="base")


def logits(model: AbstractModel, leaves: tuple[jax.Array, ...]) -> np.ndarray:
    return sequence_logits(model, leaves, TOKENS, prompt_len=40, chunk=40)


def beside(model: AbstractModel, weights: Mapping[str, jax.Array], adapter: Adapter) -> np.ndarray:
    """Returns the logits of a base with its adapter."""
    return logits(*adapted(model, tuple(weights.values()), adapter, name="test"))


def of_folder(folder: Path) -> np.ndarray:
    model, weights = opened(resolve_source(str(folder)))
    return logits(model, tuple(weights.values()))


LORA = LoraConfig(rank=3, alpha=5.0, rank_pattern={"q": 2}, use_rslora=True)
DORA = LoraConfig(rank=3, targets=("q", "o"), use_dora=True)
FAMILIES = ["llama biases, head_dim", "phi3", "gemma2", "qwen3 moe"]


@pytest.mark.parametrize("config", [LORA, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_equals_the_base_with_its_adapter(family: str, config: LoraConfig, tmp_path: Path):
    (tmp_path / "base").mkdir()
    source = resolve_source(str(write_checkpoint(family, tmp_path / "base")))
    model, weights = opened(source)
    adapter = random_adapter(model, weights, config)
    merge_checkpoint(source, adapter, tmp_path / "merged", dtype="float32")
    wanted = beside(model, weights, adapter)
    assert np.abs(wanted - logits(model, tuple(weights.values()))).max() > 0.3, "the adapter must matter"
    assert np.abs(of_folder(tmp_path / "merged") - wanted).max() < 1e-4
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    if family != "phi3":
        assert len(changed) == len(adapter.weights)
    assert all(name.endswith("_proj.weight") for name in changed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_sums_are_rounded_once(dtype: MergedDtype, tmp_path: Path):
    """Compares with float64: each stored value is the nearest of its dtype, despite float32 arithmetic."""
    (tmp_path / "base").mkdir()
    source = resolve_source(str(write_checkpoint("llama", tmp_path / "base")))
    model, weights = opened(source)
    adapter = random_adapter(model, weights, LoraConfig(rank=4, targets=("down",)))
    merge_checkpoint(source, adapter, tmp_path / "merged", dtype=dtype)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    kind = np.dtype({"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "auto": np.float32}[dtype])
    assert {array.dtype for array in stored.values()} == {kind}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == kind.name
    update = adapter.weights["layers.0.mlp.down"]
    exact = np.asarray(weights["layers.0.mlp.down.weight"], np.float64)
    exact += adapter.config.scale_of("layers.0.mlp.down") * np.asarray(update.b, np.float64) @ np.asarray(update.a)
    half_step = np.abs(exact) * float(ml_dtypes.finfo(kind).eps) / 2
    values = stored["model.layers.0.mlp.down_proj.weight"].astype(np.float64)
    assert np.all(np.abs(values - exact) <= half_step * 1.001 + 1e-6)


def test_a_quantized_base_is_dequantized_for_the_merge(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = resolve_source(str(write_checkpoint("llama", tmp_path / "plain")))
    recipe = Recipe(method="rtn", bits=4, group_size=16)
    config = model_config_from_hf(plain.config, plain.generation)
    quantize(plain, config, ONE, recipe, tmp_path / "w4", show_progress=False).finish()
    source = resolve_source(str(tmp_path / "w4"))
    model, weights = opened(source)
    assert model.quantization
    adapter = random_adapter(model, weights, LoraConfig(rank=3, alpha=4.0))
    wanted = beside(model, weights, adapter)
    merge_checkpoint(source, adapter, tmp_path / "merged")
    assert not opened(resolve_source(str(tmp_path / "merged")))[0].quantization
    assert np.abs(of_folder(tmp_path / "merged") - wanted).max() < 1e-4
    # Merging into the original weights gives another model.
    merge_checkpoint(plain, adapter, tmp_path / "original")
    assert np.abs(of_folder(tmp_path / "original") - wanted).max() > 0.05


@pytest.mark.parametrize("weights", ["int8", "int4", "nf4"])
def test_a_base_that_was_quantized_while_loading(weights: OnLoadWeights, tmp_path: Path):
    """The adapter is added to exactly the weights it was trained on, including the int8 head and table."""
    (tmp_path / "base").mkdir()
    source = resolve_source(str(write_checkpoint("llama", tmp_path / "base")))
    config = model_config_from_hf(source.config, source.generation, dtype="float32")
    plan = plan_weights(source, config, ONE, weights=weights, group=16)
    adapter = random_adapter(*opened(source), LoraConfig(rank=3))
    wanted = beside(plan.model, plan.load(), adapter)
    merge_checkpoint(source, adapter, tmp_path / "merged", rounding=BaseQuantization(weights=weights, group=16))
    assert np.abs(of_folder(tmp_path / "merged") - wanted).max() < 1e-4
    merge_checkpoint(source, adapter, tmp_path / "original")
    assert np.abs(of_folder(tmp_path / "original") - wanted).max() > 1e-3


def test_merged_and_quantized(tmp_path: Path):
    (tmp_path / "base").mkdir()
    source = resolve_source(str(write_checkpoint("llama", tmp_path / "base")))
    model, weights = opened(source)
    adapter = random_adapter(model, weights, LoraConfig(rank=3))
    recipe = Recipe(method="rtn", bits=8, group_size=16)
    merge_checkpoint(source, adapter, tmp_path / "plain")
    result = quantize_merged(tmp_path / "plain", tmp_path / "out", recipe)
    assert {folder.name for folder in tmp_path.iterdir()} == {"base", "plain", "out.partial"}
    result.finish()
    merged_model, _ = opened(resolve_source(str(tmp_path / "out")))
    assert {format.kind for format in merged_model.quantization.values()} == {"int8"}
    wanted = beside(model, weights, adapter)
    assert 1e-4 < np.abs(of_folder(tmp_path / "out") - wanted).mean() < 0.02 * wanted.std()


def test_the_auto_dtype(tmp_path: Path):
    folder = write_checkpoint("llama", tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    for stored, wanted in (("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32")):
        (folder / "config.json").write_text(json.dumps({**raw, "dtype": stored}))
        assert merged_dtype(resolve_source(str(folder)), "auto") == wanted
    assert merged_dtype(resolve_source(str(folder)), "bfloat16") == "bfloat16"


def test_bad_input(tmp_path: Path):
    (tmp_path / "base").mkdir()
    folder = write_checkpoint("llama", tmp_path / "base")
    source = resolve_source(str(folder))
    model, weights = opened(source)
    adapter = random_adapter(model, weights, LoraConfig(rank=2, targets=("q",)))
    update = adapter.weights["layers.0.attention.q"]
    large = {**adapter.weights, "layers.0.attention.q": LoraWeights(a=update.a * 1e4, b=update.b * 1e3)}
    big = Adapter(config=adapter.config, weights=large)
    with pytest.raises(ConfigError, match="too large for float16; use bfloat16"):
        merge_checkpoint(source, big, tmp_path / "out", dtype="float16")
    other = Adapter(config=adapter.config, weights={"layers.9.attention.q": update}, base_model="org/other")
    with pytest.raises(ConfigError, match="org/other"):
        merge_checkpoint(source, other, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="up_proj"):
        merge_checkpoint(source, adapter, tmp_path / "out")
