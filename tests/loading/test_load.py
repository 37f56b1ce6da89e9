"""load_weights: values, sharding, memory, and checkpoints that do not fit the model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.numpy import save_file

from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.loading.load import load_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.shared import SHARED, needs_shared


def spec(*shape: int, dtype: object = jnp.float32, sharding: jax.sharding.Sharding | None = None) -> WeightSpec:
    return WeightSpec(
        shape=shape, dtype=dtype, stored_dtype=dtype, sharding=sharding or SingleDeviceSharding(jax.devices()[0])
    )  # type: ignore[arg-type]


def tensors(dtype: object = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "model.embed_tokens.weight": rng.standard_normal((16, 8)).astype(dtype),  # type: ignore[arg-type]
        "model.layers.0.self_attn.q_proj.weight": rng.standard_normal((8, 8)).astype(dtype),  # type: ignore[arg-type]
        "model.norm.weight": rng.standard_normal(8).astype(dtype),  # type: ignore[arg-type]
    }


WANTED = {
    "embed.weight": (16, 8),
    "layers.0.attention.q.weight": (8, 8),
    "final_norm.weight": (8,),
}
HF = {
    "embed.weight": "model.embed_tokens.weight",
    "layers.0.attention.q.weight": "model.layers.0.self_attn.q_proj.weight",
    "final_norm.weight": "model.norm.weight",
}


def wanted(**options: object) -> dict[str, WeightSpec]:
    return {name: spec(*shape, **options) for name, shape in WANTED.items()}  # type: ignore[arg-type]


def checkpoint(path: Path, content: dict[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    save_file(content, path / "model.safetensors")
    return path


def wanting(config: ModelConfig, want: dict[str, WeightSpec]) -> AbstractModel:
    """Returns a model that needs exactly these weights."""
    model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
    return dataclasses.replace(model, weights=want)


def load(path: Path, want: dict[str, WeightSpec], **options: bool) -> dict[str, jax.Array]:
    config = dataclasses.replace(CONFIGS["llama"], tie_embeddings="lm_head.weight" not in want)
    return load_weights(resolve_source(str(path)), wanting(config, want), **options)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [jnp.float32, jnp.bfloat16])
def test_values_and_dtype(tmp_path: Path, stored: object, target: object):
    content = tensors(stored)
    weights = load(checkpoint(tmp_path, content), wanted(dtype=target))
    assert list(weights) == list(WANTED)
    for name, array in weights.items():
        assert array.dtype == target
        np.testing.assert_array_equal(np.asarray(array), content[HF[name]].astype(np.dtype(target)))  # type: ignore[arg-type]


def test_sharded_files(tmp_path: Path):
    content = tensors()
    checkpoint(tmp_path, content)
    (tmp_path / "model.safetensors").unlink()
    names = list(content)
    save_file({name: content[name] for name in names[:2]}, tmp_path / "a.safetensors")
    save_file({name: content[name] for name in names[2:]}, tmp_path / "b.safetensors")
    files = {names[0]: "a.safetensors", names[1]: "a.safetensors", names[2]: "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    for name, array in load(tmp_path, wanted()).items():
        np.testing.assert_array_equal(np.asarray(array), content[HF[name]])

    index.write_text(json.dumps({"weight_map": {**files, names[1]: "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"b\.safetensors.*q_proj.*it is in a\.safetensors"):
        load(tmp_path, wanted())

    save_file({name: content[name] for name in names[1:]}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors.*q_proj.*is in a\.safetensors too"):
        load(tmp_path, wanted())


def test_every_layout_of_the_mesh(tmp_path: Path):
    """Uses all devices of the test session (8 fake ones in CI)."""
    devices = jax.devices()
    size = 8 if len(devices) >= 8 else 1
    mesh = jax.make_mesh((size,), ("tp",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:size])
    content = tensors()
    checkpoint(tmp_path, content)
    for axes in (("tp", None), (None, "tp"), (None, None)):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        weights = load(
            tmp_path,
            {
                "embed.weight": spec(16, 8, sharding=sharding),
                "layers.0.attention.q.weight": spec(8, 8, sharding=sharding),
                "final_norm.weight": spec(8, sharding=NamedSharding(mesh, PartitionSpec(axes[0]))),
            },
        )
        for name, array in weights.items():
            np.testing.assert_array_equal(np.asarray(array), content[HF[name]])
        assert weights["embed.weight"].sharding == sharding
        shard = weights["embed.weight"].addressable_shards[0].data.shape
        assert shard == (16 // (size if axes[0] else 1), 8 // (size if axes[1] else 1))


def test_missing_tensor_is_named(tmp_path: Path):
    content = tensors()
    del content["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'model\.norm\.weight' is missing"):
        load(checkpoint(tmp_path, content), wanted())


def test_missing_head_hints_at_tying(tmp_path: Path):
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load(checkpoint(tmp_path, tensors()), {**wanted(), "lm_head.weight": spec(16, 8)})


def test_unexpected_tensor_is_named(tmp_path: Path):
    content = {**tensors(), "model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32)}
    with pytest.raises(CheckpointError, match=r"q_proj\.bias' is not part of the model"):
        load(checkpoint(tmp_path, content), wanted())


def test_a_stored_head_is_ignored_only_where_tied(tmp_path: Path):
    content = {
        **tensors(),
        "lm_head.weight": np.ones((16, 8), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    checkpoint(tmp_path, content)
    assert "lm_head.weight" not in load(tmp_path, wanted())
    untied = load(tmp_path, {**wanted(), "lm_head.weight": spec(16, 8)})
    np.testing.assert_array_equal(np.asarray(untied["lm_head.weight"]), content["lm_head.weight"])


def test_wrong_shape_names_file_tensor_and_both_shapes(tmp_path: Path):
    content = {**tensors(), "model.embed_tokens.weight": np.zeros((17, 8), np.float32)}
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*embed_tokens.*\[17, 8\].*expected \[16, 8\]"):
        load(checkpoint(tmp_path, content), wanted())


def test_quantized_tensor_is_refused(tmp_path: Path):
    content = {**tensors(), "model.norm.weight": np.zeros(8, np.int8)}
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*I8.*unquantized"):
        load(checkpoint(tmp_path, content), wanted())


def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    load(checkpoint(tmp_path, tensors()), wanted(), show_progress=True)
    captured = capsys.readouterr()
    assert "Loading weights" in captured.err and captured.out == ""


@needs_shared
def test_stories260k():
    source = resolve_source(str(SHARED / "models/stories260K"))
    want = {"embed.weight": spec(512, 64), "final_norm.weight": spec(64)}
    for i in range(5):
        layer = f"layers.{i}"
        want |= {f"{layer}.attention_norm.weight": spec(64), f"{layer}.mlp_norm.weight": spec(64)}
        want |= {f"{layer}.attention.{m}.weight": spec(s, 64) for m, s in (("q", 64), ("k", 32), ("v", 32), ("o", 64))}
        want |= {f"{layer}.mlp.gate.weight": spec(172, 64), f"{layer}.mlp.up.weight": spec(172, 64)}
        want[f"{layer}.mlp.down.weight"] = spec(64, 172)
    weights = load_weights(source, wanting(CONFIGS["llama"], want))
    assert sum(array.size for array in weights.values()) == 260_032
    assert all(bool(jnp.isfinite(array).all()) for array in weights.values())


PEAK = """
import dataclasses, sys, jax, numpy as np, jax.numpy as jnp
from pathlib import Path
from ryzjax.loading.load import load_weights
from ryzjax.checkpoint.source import resolve_source
from ryzjax.models.registry import abstract_model
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS

def high_water():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l).split()[1]) * 1024

sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
jnp.zeros(8).block_until_ready()
spec = WeightSpec(shape=(4096, 2560), dtype=sys.argv[2], stored_dtype=sys.argv[2], sharding=sharding)
wanted = {f"layers.{i}.mlp.up.weight": spec for i in range(10)}
source = resolve_source(sys.argv[1])
model = abstract_model(CONFIGS["llama"], Placement(Layout.load("single"), jax.devices()[:1]))
model = dataclasses.replace(model, weights=wanted)
before = high_water()
weights = load_weights(source, model)
print((high_water() - before) / sum(w.nbytes for w in weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_peak_memory_is_one_copy_of_the_model(tmp_path: Path):
    """Reads 400 MB of float32 as float32 and as bfloat16, each in its own process."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((4096, 2560), dtype=np.float32)
    checkpoint(tmp_path, {f"model.layers.{i}.mlp.up_proj.weight": block for i in range(10)})
    for dtype in ("float32", "bfloat16"):
        result = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), dtype],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert result.returncode == 0, result.stderr
        ratio = float(result.stdout.split()[-1])
        assert 0.9 < ratio < 1.15, (dtype, ratio)


def test_dummy_weights():
    want = {
        "embed.weight": spec(3000, 512, dtype=jnp.bfloat16),
        "layers.0.attention_norm.weight": spec(512),
        "final_norm.weight": spec(512),
    }
    weights = dummy_weights(want, 3)
    embed = np.asarray(weights["embed.weight"]).astype(np.float32)
    assert weights["embed.weight"].dtype == jnp.bfloat16
    assert abs(embed.std() - 0.02) < 1e-4 and abs(embed.mean()) < 1e-4
    assert len(np.unique(embed[0])) > 100 and not np.array_equal(embed[0], embed[2048])
    assert (np.asarray(weights["final_norm.weight"]) == 1).all()
    assert (np.asarray(weights["layers.0.attention_norm.weight"]) == 1).all()
    again = np.asarray(dummy_weights(want, 3)["embed.weight"]).astype(np.float32)
    np.testing.assert_array_equal(embed, again)
    other = np.asarray(dummy_weights(want, 4)["embed.weight"]).astype(np.float32)
    assert not np.array_equal(embed, other)
    with pytest.raises(ConfigError, match="seed=-1"):
        dummy_weights(want, -1)


def test_dummy_weights_do_not_depend_on_the_sharding():
    devices = jax.devices()
    size = 8 if len(devices) >= 8 else 1
    mesh = jax.make_mesh((size,), ("tp",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:size])
    sharding = NamedSharding(mesh, PartitionSpec(None, "tp"))
    alone = dummy_weights({"embed.weight": spec(64, 32)}, 0)["embed.weight"]
    shared = dummy_weights({"embed.weight": spec(64, 32, sharding=sharding)}, 0)["embed.weight"]
    assert shared.sharding == sharding
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(shared))
