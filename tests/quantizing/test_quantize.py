"""quantize on whole models: results load and are near the original, killed runs resume, and reports are complete."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.models.abstract import AbstractModel
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing import quantize as quantize_module
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.quantize import QuantizedModel, quantize
from ryzjax.quantizing.shards import Shards
from ryzjax.sharding import Layout, Placement
from tests.models.paged import sequence_logits
from tests.models.test_families import write_checkpoint

ONE = Placement(Layout.load("single"), jax.devices()[:1])
TOKENS = [(7 * i) % 48 for i in range(40)]


def random_calibration(vocab: int = 48, sequences: int = 16, tokens: int = 64) -> Calibration:
    ids = np.random.default_rng(0).integers(0, vocab, (sequences + 4, tokens)).astype(np.int32)
    return Calibration(tokens=ids[:sequences], held_out=ids[sequences:], source="random", sha256="0")


def run(folder: Path, out: Path, recipe: Recipe, calibration: Calibration | None = None, **options) -> QuantizedModel:
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, source.generation)
    return quantize(source, config, ONE, recipe, out, calibration=calibration, show_progress=False, **options)


def opened(folder: Path, placement: Placement = ONE) -> tuple[AbstractModel, dict[str, jax.Array]]:
    source = resolve_source(str(folder))
    model = stored_model(source, model_config_from_hf(source.config, source.generation), placement)
    return model, load_weights(source, model)


def logits(folder: Path, placement: Placement = ONE) -> np.ndarray:
    model, weights = opened(folder, placement)
    return sequence_logits(model, tuple(weights.values()), TOKENS, prompt_len=32, chunk=32)


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    p, q = jax.nn.log_softmax(reference), jax.nn.log_softmax(other)
    return float(jnp.sum(jnp.exp(p) * (p - q), axis=-1).mean())


CASES = [
    *(("llama biases, head_dim", method) for method in ("rtn", "hqq", "gptq", "awq", "auto")),
    pytest.param("gemma2", "auto", marks=pytest.mark.slow),
    # AWQ folds into what each family has beside the layers.
    ("olmo2", "awq"),
    pytest.param("qwen3", "awq", marks=pytest.mark.slow),
    pytest.param("phi3", "awq", marks=pytest.mark.slow),
    pytest.param("smollm3", "gptq", marks=pytest.mark.slow),
    ("mixtral", "gptq"),
]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_written_model_is_near_the_original(family: str, method: str, tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint(family, tmp_path / "plain")
    recipe = Recipe(method=method, group_size=16)  # type: ignore[arg-type]
    calibration = random_calibration() if recipe.needs_data else None
    result = run(plain, tmp_path / "out", recipe, calibration)
    with pytest.raises(CheckpointError):
        resolve_source(str(tmp_path / "out"))
    result.finish()
    model, _ = opened(tmp_path / "out")
    linears = [name for name in model.linears if "experts" not in name and "router" not in name and name != "lm_head"]
    assert set(model.quantization) == set(linears)
    assert {report.name for report in result.reports} == set(model.linears)
    reference, got = logits(plain), logits(tmp_path / "out")
    scale = np.abs(reference - reference.mean(axis=-1, keepdims=True)).mean()
    error = np.abs(got - reference).mean() / scale
    assert error < 0.4, error  # about 1.4 for logits of another model


def test_awq_folds_into_norms_and_layers(tmp_path: Path):
    """Inputs of very different sizes make scaling pay. Norms and layers before change; the function does not."""
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("gemma2", tmp_path / "plain")
    tensors = dict(load_file(plain / "model.safetensors"))
    for name in tensors:
        if "layernorm" in name:
            tensors[name] = tensors[name] + np.where(np.arange(32) % 8 == 0, 6.0, 0.0).astype(np.float32)
    save_file(tensors, plain / "model.safetensors")
    calibration = random_calibration()
    results = {}
    for method in ("rtn", "awq"):
        recipe = Recipe(method=method, group_size=32)  # type: ignore[arg-type]
        results[method] = run(plain, tmp_path / method, recipe, calibration)
        results[method].finish()
    first = next(report for report in results["awq"].reports if report.name == "layers.0.attention.q")
    assert first.method == "awq+rtn" and first.output_error is not None and first.rtn_error is not None
    assert first.output_error < 0.9 * first.rtn_error
    result = json.loads((tmp_path / "awq" / "config.json").read_text())
    assert result["quantization_config"]["quant_method"] == "compressed-tensors"
    before, after = opened(plain)[1], opened(tmp_path / "awq")[1]
    norm = "layers.0.attention_norm.weight"
    assert np.abs(np.asarray(before[norm]) - np.asarray(after[norm])).max() > 0.1
    reference = logits(plain)
    # A scale on one side only would give another model.
    assert divergence(reference, logits(tmp_path / "awq")) < 2 * divergence(reference, logits(tmp_path / "rtn"))


def test_fused_matrices_are_written_as_one(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    run(write_checkpoint("phi3", tmp_path / "plain"), tmp_path / "out", Recipe(method="rtn", group_size=16)).finish()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "model.layers.0.self_attn.qkv_proj.weight_packed" in index
    assert "model.layers.0.self_attn.qkv_proj.weight" not in index


def test_experts_and_routers_stay_plain_with_a_note(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    result = run(write_checkpoint("mixtral", tmp_path / "plain"), tmp_path / "out", Recipe(method="rtn", group_size=16))
    notes = {report.name: report.notes for report in result.reports if report.method == "none"}
    assert "experts" in notes["layers.0.mlp.experts.gate"][0] and "16 bits" in notes["layers.0.mlp.router"][0]


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    recipe, calibration = Recipe(method="auto", group_size=16), random_calibration()
    whole = run(plain, tmp_path / "whole", recipe, calibration)
    whole.finish()
    original, done = Shards.write, []

    def dies(self: Shards, layer: int, *args: object) -> None:
        if layer == 1 and not done:
            raise KeyboardInterrupt
        original(self, layer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Shards, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(plain, tmp_path / "out", recipe, calibration)
    partial = tmp_path / "out.partial"
    assert partial.is_dir() and not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve_source(str(partial))
    done.append(True)
    blocks: list[int] = []
    block = quantize_module._Run._block
    monkeypatch.setattr(quantize_module._Run, "_block", lambda self, i, s: (blocks.append(i), block(self, i, s))[1])
    again = run(plain, tmp_path / "out", recipe, calibration)
    again.finish()
    assert blocks == [1]
    assert again.reports == whole.reports
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(
        f.name for f in (tmp_path / "whole").iterdir()
    )


def test_another_recipe_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    original = Shards.write

    def dies(self: Shards, layer: int, *args: object) -> None:
        if layer == 1:
            raise KeyboardInterrupt
        original(self, layer, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Shards, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(plain, tmp_path / "out", Recipe(method="rtn", group_size=16))
    monkeypatch.undo()
    result = run(plain, tmp_path / "out", Recipe(method="rtn", group_size=32))
    assert {report.group_size for report in result.reports if report.bits == 4} == {0}  # 32 in features: one group


def test_overrides_eight_bits_and_the_head(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    recipe = Recipe(method="rtn", group_size=16, overrides={r"layers\.0\.": 16, r"mlp\.down": 8}, lm_head_bits=8)
    result = run(plain, tmp_path / "out", recipe)
    result.finish()
    bits = {report.name: report.bits for report in result.reports}
    assert bits["layers.0.mlp.up"] == 32 and bits["layers.1.mlp.down"] == 8 and bits["layers.1.mlp.up"] == 4
    assert bits["lm_head"] == 8
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2 and "model.layers.0.mlp.up_proj" in config["ignore"]
    assert divergence(logits(plain), logits(tmp_path / "out")) < 0.05


def test_w8a8(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    recipe = Recipe(method="gptq", bits=8, int8_activations=True)
    run(plain, tmp_path / "out", recipe, random_calibration()).finish()
    model, weights = opened(tmp_path / "out")
    assert all(format.activations == "int8" for format in model.quantization.values())
    assert weights["layers.0.mlp.up.weight.values"].dtype == jnp.int8
    assert divergence(logits(plain), logits(tmp_path / "out")) < 4e-3


@pytest.mark.slow
def test_a_run_over_devices_writes_what_one_device_writes(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    source = resolve_source(str(plain))
    config = model_config_from_hf(source.config)
    recipe = Recipe(method="gptq", group_size=16)
    calibration = random_calibration()
    run(plain, tmp_path / "one", recipe, calibration).finish()
    placement = Placement(Layout.load("tp"), jax.devices()[:2])
    quantize(source, config, placement, recipe, tmp_path / "two", calibration=calibration, show_progress=False).finish()
    reference = logits(plain)
    one, two = divergence(reference, logits(tmp_path / "one")), divergence(reference, logits(tmp_path / "two"))
    assert two == pytest.approx(one, rel=0.3)


@pytest.mark.parametrize(
    ("edit", "recipe", "message"),
    [
        ({}, Recipe(method="gptq"), "method gptq needs calibration text"),
        ({"nan": True}, Recipe(method="rtn", group_size=16), r"layers\.0\.attention\.q: 1 weights are NaN"),
        ({"taken": True}, Recipe(method="rtn"), "exists; name a folder"),
    ],
)
def test_bad_input(edit: dict, recipe: Recipe, message: str, tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    if edit.get("nan"):
        tensors = dict(load_file(plain / "model.safetensors"))
        tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = np.nan
        save_file(tensors, plain / "model.safetensors")
    if edit.get("taken"):
        (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=message):
        run(plain, tmp_path / "out", recipe)


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    plain = write_checkpoint("llama", tmp_path / "plain")
    run(plain, tmp_path / "out", Recipe(method="rtn", group_size=16)).finish()
    with pytest.raises(ConfigError, match="quantized already"):
        run(tmp_path / "out", tmp_path / "again", Recipe(method="rtn", group_size=16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "gptq2"}, "method='gptq2'"),
        ({"bits": 3}, "bits=3"),
        ({"group_size": 48}, "group=48"),
        ({"overrides": {"(": 4}}, "regular expression"),
        ({"overrides": {"a": 5}}, "5 bits"),
        ({"target_bits": 5.0, "max_kl": 0.1}, "one of them"),
        ({"target_bits": 3.0}, "target_bits=3.0"),
        ({"max_kl": -1.0}, "max_kl=-1.0"),
        ({"bits": 8, "max_kl": 1.0}, "starts at 4 bits"),
        ({"lm_head_bits": 4}, "lm_head_bits=4"),
        ({"bits": 8, "method": "awq"}, "awq is for 4 bits"),
    ],
)
def test_invalid_recipes(fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)
