"""`--weights`: a plain checkpoint is quantized while loading, and a quantized one is kept or dequantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax import LLM, SamplingParams
from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import ConfigError, LayoutError
from ryzjax.evaluation import EvaluationText, open_model, text_divergence
from ryzjax.loading.load import load_weights
from ryzjax.loading.weight_plan import WeightChoice, WeightPlan, plan_weights
from ryzjax.qarray import QFormat
from ryzjax.quant.quantized_rows import QuantizedRows
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.quantize import quantize
from ryzjax.serving.messages.config import EngineOptions
from ryzjax.sharding import Layout, Placement

ROOT = Path(__file__).parents[2]
TEXT = "Once upon a time there was a little girl named Lily. She loved to play outside in the park. " * 8


def plan(path: Path, weights: WeightChoice, layout: str = "single", group: int = 32) -> WeightPlan:
    source = resolve_source(str(path))
    config = model_config_from_hf(source.config, source.generation, dtype="float32")
    return plan_weights(source, config, Placement(Layout.load(layout)), weights=weights, group=group)


@pytest.mark.parametrize(("weights", "kind"), [("int8", "int8"), ("int4", "int4"), ("nf4", "float4")])
def test_each_weight_has_the_planned_format(stories: Path, weights: WeightChoice, kind: str):
    made = plan(stories, weights)
    loaded = made.load()
    plain = load_weights(made.source, made.stored)
    assert list(loaded) == list(made.model.weights)
    formats = made.model.quantization
    assert formats["embed"].kind == "int8"
    assert formats["layers.0.attention.q"].kind == kind
    assert formats["layers.0.mlp.down"] == QFormat(
        kind="int8", scale_dtype="bfloat16"
    )  # 172 is not a multiple of the group size
    for name, array in loaded.items():
        spec = made.model.weights[name]
        assert array.shape == spec.shape and array.dtype == spec.stored_dtype and array.sharding == spec.sharding
        if name in plain:
            np.testing.assert_array_equal(array, plain[name])


def test_quality_orders_the_formats(stories: Path):
    reference = open_model(str(stories), dtype="float32")
    text = EvaluationText.of(TEXT)
    kl = {
        weights: text_divergence(
            reference, open_model(str(stories), dtype="float32", weights=weights, weights_group=32), text
        ).mean_kl
        for weights in ("int8", "int4", "nf4")
    }
    assert kl["int8"] < 2e-3 and kl["int8"] < kl["int4"] < 0.5 and kl["int8"] < kl["nf4"] < 0.5


@pytest.mark.parametrize("weights", ["int4", "nf4"])
def test_a_layout_splits_whole_groups_or_is_refused(
    stories: Path, tmp_path: Path, compile_cache: str, weights: WeightChoice
):
    layout = (ROOT / "configs" / "sharding" / "tp.toml").read_text().replace("-1", "2")
    (tmp_path / "two.toml").write_text(layout)
    options: EngineOptions = {
        "dtype": "float32",
        "weights": weights,
        "weights_group": 32,
        "max_sequences": 2,
        "max_batch_tokens": 16,
        "compile_cache": compile_cache,
    }
    prompts, params = ["Once upon a time", "The dog"], SamplingParams(temperature=0, max_tokens=12)
    tokens = []
    for name in ("single", str(tmp_path / "two.toml")):
        with LLM(str(stories), layout=name, **options) as llm:
            tokens.append([output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)])
    assert tokens[0] == tokens[1]
    with pytest.raises(LayoutError, match="no whole number of groups of 32"):
        plan(stories, weights, layout="tp")


def test_a_quantized_checkpoint_is_not_quantized_again_but_can_be_dequantized(stories: Path, tmp_path: Path):
    source = resolve_source(str(stories))
    config = model_config_from_hf(source.config, source.generation)
    one = Placement(Layout.load("single"))
    quantize(
        source, config, one, Recipe(method="rtn", bits=8, group_size=32), tmp_path / "w8", show_progress=False
    ).finish()
    with pytest.raises(ConfigError, match="quantized already"):
        plan(tmp_path / "w8", "int4")
    made = plan(tmp_path / "w8", "bf16")
    assert not made.model.quantization
    kept = plan(tmp_path / "w8", "auto")
    assert kept.model.quantization
    name = "layers.0.attention.q"
    values = {part: array for key, array in kept.load().items() if (part := key.removeprefix(f"{name}.weight."))}
    assert made.load()[f"{name}.weight"].shape == values["values"].shape


@pytest.mark.parametrize("weights", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("layout", ["single", "tp"])
def test_xla_loads_the_same_bytes_as_the_kernel(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: WeightChoice, layout: str
):
    if layout == "tp":
        text = (ROOT / "configs" / "sharding" / "tp.toml").read_text().replace("-1", "2")
        layout = str(tmp_path / "two.toml")
        Path(layout).write_text(text)
    made = plan(stories, weights, layout)
    monkeypatch.setattr("ryzjax.quant.quantized_rows.PANEL_WEIGHTS", 1000)  # several panels a matrix
    loaded = made.load()
    monkeypatch.setattr(QuantizedRows, "refusal", staticmethod(lambda dtype, format: "a comparison"))
    expected = made.load()
    assert list(loaded) == list(expected)
    for name, array in loaded.items():
        assert array.sharding == expected[name].sharding and array.dtype == expected[name].dtype
        different = np.asarray(array) != np.asarray(expected[name])
        # Sums in another order may choose between int4 scales of nearly the same error.
        assert different.mean() <= (0.01 if weights == "int4" and array.ndim == 2 else 0)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_damaged_weight_is_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_native: bool):
    if not is_native:
        monkeypatch.setattr(QuantizedRows, "refusal", staticmethod(lambda dtype, format: "a comparison"))
    demo = ROOT / "ryzjax" / "demo"
    tensors = load_file(demo / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][1, 2:5] = np.nan
    (tmp_path / "config.json").write_bytes((demo / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"mlp\.down\.weight: 3 weights are NaN or infinite"):
        plan(tmp_path, "int4").load()


@pytest.mark.parametrize("is_native", [True, False])
def test_progress_counts_every_byte(stories: Path, monkeypatch: pytest.MonkeyPatch, is_native: bool):
    if not is_native:
        monkeypatch.setattr(QuantizedRows, "refusal", staticmethod(lambda dtype, format: "a comparison"))
    told: list[int] = []

    @contextmanager
    def progress(description: str, total_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
        assert show
        yield told.append
        assert sum(told) == total_bytes

    monkeypatch.setattr("ryzjax.loading.quantized_load.byte_progress", progress)
    plan(stories, "int4").load(show_progress=True)
    assert len(told) > 3
