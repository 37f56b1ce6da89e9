"""Converted models load with the same weights, sharded and in both dtypes, or are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading import load_weights, plan_weights
from ryzjax.loading.orbax import save_converted
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.test_families import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, dtype: str, layout: str = "single"):
    source = resolve_source(str(folder))
    config = model_config_from_hf(source.config, source.generation, dtype=dtype, source=source.config_name)
    model = abstract_model(config, Placement(Layout.load(layout), jax.devices()[: 1 if layout == "single" else 8]))
    return source, config, model, load_weights(source, model)


def convert(name: str, folder: Path, dtype: str) -> tuple[Path, dict[str, jax.Array]]:
    origin = folder / "origin"
    origin.mkdir()
    source, config, _, weights = load(write_checkpoint(name, origin), dtype)
    (origin / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    save_converted(folder / "converted", source, config, weights)
    return folder / "converted", weights


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("mixtral", "bfloat16"), ("gpt-oss", "float32")])
def test_converted_weights_are_the_same_in_every_layout(name: str, dtype: str, tmp_path: Path):
    folder, weights = convert(name, tmp_path, dtype)
    shutil.rmtree(tmp_path / "origin")
    for layout in ("single", "ep", "fsdp_tp"):
        source, config, model, again = load(folder, "auto", layout)
        assert (source.weight_format, config.dtype) == ("orbax", dtype)
        assert list(again) == list(model.weights)
        for weight, array in again.items():
            assert array.sharding.is_equivalent_to(model.weights[weight].sharding, array.ndim)
            assert array.dtype == model.weights[weight].stored_dtype
            np.testing.assert_array_equal(np.asarray(array), np.asarray(weights[weight]))
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"eos_token": "</s>"}


@pytest.mark.parametrize("layout", ["single", "fsdp_tp"])
def test_converted_weights_are_quantized_while_loading(tmp_path: Path, layout: str):
    folder, _ = convert("mixtral", tmp_path, "bfloat16")
    placement = Placement(Layout.load(layout), jax.devices()[: 1 if layout == "single" else 8])
    loaded = []
    for path in (tmp_path / "origin", folder):
        source = resolve_source(str(path))
        config = model_config_from_hf(source.config, source.generation, dtype="bfloat16", source=source.config_name)
        loaded.append(plan_weights(source, config, placement, weights="int8", group=32).load())
    assert list(loaded[0]) == list(loaded[1]) and "layers.0.attention.q.weight.values" in loaded[0]
    for name, array in loaded[0].items():
        assert array.sharding == loaded[1][name].sharding
        np.testing.assert_array_equal(np.asarray(array), np.asarray(loaded[1][name]))


def test_another_dtype_is_cast(tmp_path: Path):
    folder, weights = convert("mixtral", tmp_path, "float32")
    _, _, _, again = load(folder, "bfloat16")
    name = "layers.0.mlp.experts.up.weight"
    assert again[name].dtype == np.uint16
    expected = np.asarray(weights[name].astype("bfloat16")).view(np.uint16)
    np.testing.assert_array_equal(np.asarray(again[name]), expected)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path):
    folder, weights = convert("llama", tmp_path, "float32")
    source, config, _, _ = load(tmp_path / "origin", "float32")
    with pytest.raises(ConfigError, match="converted is not empty"):
        save_converted(folder, source, config, weights)


def test_a_config_of_another_model_is_refused(tmp_path: Path):
    folder, _ = convert("llama", tmp_path, "float32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"orbax: lacks \['layers.2.attention.k.weight'"):
        load(folder, "auto")
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(CheckpointError, match=r"mlp.down.weight' has shape \[32, 48\]; expected \[32, 64\]"):
        load(folder, "auto")


LOAD = """
import sys
from tests.loading.test_orbax import load
from pathlib import Path
load(Path(sys.argv[1]), "auto")
"""


def test_damaged_files_are_named(tmp_path: Path):
    folder, _ = convert("llama", tmp_path, "float32")
    for file in (folder / "orbax").rglob("*"):
        if file.is_file() and file.stat().st_size > 200 and "d" in file.parts[-2:]:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    # This runs in its own process: reads that Orbax has started finish after it raises, and log errors later.
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 1
    assert "CheckpointError" in done.stderr and "orbax: cannot be read" in done.stderr


def test_a_missing_orbax_folder_is_refused(tmp_path: Path):
    write_checkpoint("llama", tmp_path)
    with pytest.raises(CheckpointError, match="no folder 'orbax'; make one with ryzjax convert"):
        resolve_source(str(tmp_path), load_format="orbax")
