"""resolve_source: finds the files of a model, or says why it cannot."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ryzjax.checkpoint.source import resolve_source
from ryzjax.errors import CheckpointError, ConfigError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def write_index(model: Path, weight_map: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_single_file(model: Path):
    (model / "model.safetensors").touch()
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    source = resolve_source(str(model))
    assert source.weight_files == (model / "model.safetensors",)
    assert source.weight_map is None
    assert (source.config, source.generation) == ({"model_type": "llama"}, {"eos_token_id": 2})
    assert source.directory == model


def test_a_single_safetensors_file_of_any_name(model: Path):
    (model / "weights.safetensors").touch()
    assert resolve_source(str(model)).weight_files == (model / "weights.safetensors",)


def test_sharded_index(model: Path):
    for name in ("a.safetensors", "b.safetensors"):
        (model / name).touch()
    write_index(model, {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"})
    source = resolve_source(str(model))
    assert source.weight_files == (model / "a.safetensors", model / "b.safetensors")
    assert source.weight_map == {
        "x": model / "b.safetensors",
        "y": model / "a.safetensors",
        "z": model / "a.safetensors",
    }


def test_missing_shard_is_named(model: Path):
    (model / "a.safetensors").touch()
    write_index(model, {"x": "a.safetensors", "y": "model-00002-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"1 are missing: model-00002-of-00002\.safetensors"):
        resolve_source(str(model))


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "a.bin", 3])
def test_an_index_cannot_name_files_elsewhere(model: Path, name: object):
    write_index(model, {"x": name})
    with pytest.raises(CheckpointError, match="beside the index"):
        resolve_source(str(model))


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_bad_index(model: Path, weight_map: object):
    write_index(model, weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        resolve_source(str(model))


def test_several_files_without_index(model: Path):
    (model / "a.safetensors").touch()
    (model / "b.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors\.index\.json"):
        resolve_source(str(model))


def test_pickled_weights_are_refused_unread(model: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (model / "exploded",))

    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*safe_serialization"):
        resolve_source(str(model))
    assert not (model / "exploded").exists()


def test_no_weights(model: Path):
    with pytest.raises(CheckpointError, match="--load-format dummy"):
        resolve_source(str(model))
    assert resolve_source(str(model), load_format="dummy").weight_files == ()


def test_bare_config_file_is_for_random_weights(model: Path):
    path = str(model / "config.json")
    source = resolve_source(path, load_format="dummy")
    assert source.config == {"model_type": "llama"} and source.directory == model
    with pytest.raises(ConfigError, match="--load-format dummy"):
        resolve_source(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_bad_config_json(model: Path, text: str):
    (model / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve_source(str(model))


def test_no_config(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/dir", "a/b/c", "-x/y", "a b"])
def test_a_name_that_is_no_hub_id_is_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("looked on the Hub"))
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_source(name)


def test_options(model: Path):
    with pytest.raises(ConfigError, match="pickle"):
        resolve_source(str(model), load_format="pickle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="revision"):
        resolve_source(str(model), revision="main")
    with pytest.raises(ConfigError, match="empty"):
        resolve_source("")


def test_hub_download_takes_only_safe_files(model: Path, monkeypatch: pytest.MonkeyPatch):
    (model / "model.safetensors").touch()
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve_source("org/name", revision="v1")
    assert (asked["repo"], asked["revision"]) == ("org/name", "v1")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list) and "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) and "token" not in pattern and "chat" not in pattern
                   for pattern in patterns)  # fmt: skip
    assert "consolidated*" in asked["ignore_patterns"] and "*/*.safetensors" in asked["ignore_patterns"]  # type: ignore[operator]
    assert source.path == model and source.name == "org/name"
    resolve_source("org/name", load_format="dummy")
    assert "*.safetensors" not in asked["allow_patterns"]  # type: ignore[operator]


def test_hub_gguf_downloads_one_file_or_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"org/name has no file tiny-Q4_K.gguf"):
        resolve_source("org/name/tiny-Q4_K.gguf")
    assert (asked["repo"], asked["allow_patterns"]) == ("org/name", ["tiny-Q4_K.gguf"])
    with pytest.raises(CheckpointError, match=r"has no file"):
        resolve_source("org/name/tiny-00001-of-00003.gguf", revision="v2")
    assert (asked["revision"], asked["allow_patterns"]) == ("v2", ["tiny-*-of-00003.gguf"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LocalEntryNotFoundError("no network"), "cannot be reached"),
        (HFValidationError("bad id"), "bad id"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_hub_errors_are_clear(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch):
    def download(repo: str, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=rf"'org/name'.*{expected}"):
        resolve_source("org/name")
