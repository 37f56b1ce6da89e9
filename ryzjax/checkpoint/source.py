"""resolve_source: finds a model's files, from a local directory, one file, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ryzjax.checkpoint.hub import MODEL_TEXT_FILES, download
from ryzjax.checkpoint.json_object import read_json_object
from ryzjax.checkpoint.weight_files import SAFETENSORS_INDEX, find_gguf, find_safetensors, gguf_parts, gguf_pattern
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.shipped import DEMO_MODEL, demo_folder

__all__ = ["ORBAX_FOLDER", "CheckpointSource", "LoadFormat", "resolve_source"]

LoadFormat = Literal["auto", "safetensors", "gguf", "orbax", "dummy"]
WeightFormat = Literal["safetensors", "gguf", "orbax"]

ORBAX_FOLDER = "orbax"
"""The folder of the arrays, in a directory that `ryzjax convert` wrote."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_GGUF = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*\.gguf)")


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """The files of one model. The config files are parsed; the tensors are not read.

    Attributes:
      name: The name that the user gave: a path or a Hub id.
      path: The model's directory or GGUF file; for random weights it may be a config file.
      config: The parsed `config.json`, or the equivalent from a GGUF file's metadata.
      config_name: Path of the file that `config` came from, for error messages.
      generation: The parsed `generation_config.json`; None where there is none.
      weight_format: The format of the weight files.
      weight_files: The weight files. Empty for random weights and for "orbax".
      weight_map: Tensor name -> file, from the index of sharded safetensors; None without an index.
    """

    name: str
    path: Path
    config: Mapping[str, object]
    config_name: str
    generation: Mapping[str, object] | None = None
    weight_format: WeightFormat = "safetensors"
    weight_files: tuple[Path, ...] = ()
    weight_map: Mapping[str, Path] | None = None

    @property
    def directory(self) -> Path:
        """The directory that holds the model's files, such as the tokenizer's."""
        return self.path if self.path.is_dir() else self.path.parent


def resolve_source(
    model: str, *, load_format: LoadFormat = "auto", revision: str | None = None, show_progress: bool = True
) -> CheckpointSource:
    """Finds a model's files. Downloads them if `model` is a Hub id.

    Args:
      model: A local directory; a GGUF file; a config file (only with load_format "dummy"); "ryzjax/demo", the model
        that ships with the package; or a Hub id such as "org/name", or "org/name/file.gguf".
      load_format: The format of the weight files. "auto" takes the format it finds: a converted model, then
        safetensors, then GGUF. "dummy" needs no weight files.
      revision: Branch, tag or commit on the Hub.
      show_progress: Whether to show progress bars on stderr while downloading.

    Raises:
      CheckpointError: The model cannot be found or downloaded, or a file is missing or unreadable.
      ConfigError: `model` is empty or a config file without load_format "dummy", `load_format` is unknown, or a
        revision was given for a local path.
    """
    if load_format not in get_args(LoadFormat):
        raise ConfigError(f"load_format={load_format!r} is not supported; expected one of {get_args(LoadFormat)}")
    if not model:
        raise ConfigError("model is empty; expected a directory or a Hugging Face id such as org/name")
    path = Path(model).expanduser()
    if model == DEMO_MODEL and not path.exists():
        path = demo_folder()
    if path.exists() and revision is not None:
        raise ConfigError(f"revision={revision!r} was given, but model={model!r} is a local path; leave it out")
    if path.suffix == ".gguf" and (path.is_file() or load_format == "gguf"):
        return _gguf(model, path, load_format)
    if path.is_file():
        return _config_file(model, path, load_format)
    hub_gguf = None if path.exists() else _HUB_GGUF.fullmatch(model)
    if hub_gguf is not None:
        repository, name = hub_gguf.groups()
        folder = download(repository, [gguf_pattern(name)], revision=revision, show_progress=show_progress)
        if not (folder / name).is_file():
            raise CheckpointError(f"model={model!r}: the repository {repository} has no file {name}; check the name")
        return _gguf(model, folder / name, load_format)
    if not path.exists():
        if not _HUB_ID.fullmatch(model):
            raise CheckpointError(
                f"model={model!r}: no such directory; expected a directory with config.json, or a Hugging Face id "
                "such as org/name"
            )
        weights = [] if load_format == "dummy" else ["*.safetensors", SAFETENSORS_INDEX]
        path = download(model, [*MODEL_TEXT_FILES, *weights], revision=revision, show_progress=show_progress)
    return _directory(model, path, load_format)


def _config_file(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    if load_format != "dummy":
        raise ConfigError(
            f"model={model!r} is a file, and load_format={load_format!r} needs a directory with weights; "
            "name the directory, or use random weights with --load-format dummy"
        )
    return CheckpointSource(name=model, path=path, config=read_json_object(path), config_name=str(path))


def _gguf(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    """The source of a GGUF model. The metadata of its first part describes the whole model."""
    if load_format not in ("auto", "gguf", "dummy"):
        raise ConfigError(f"model={model!r} is a GGUF file, not {load_format}; leave load_format out")
    files = gguf_parts(path)
    # Imported here: only GGUF files need it.
    from ryzjax.checkpoint.gguf.config import gguf_config
    from ryzjax.checkpoint.gguf.file import GgufFile

    with closing(GgufFile(files[0])) as file:
        config = gguf_config(file)
    return CheckpointSource(
        name=model,
        path=path,
        config=config,
        config_name=str(path),
        weight_format="gguf",
        weight_files=() if load_format == "dummy" else files,
    )


def _directory(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    config = path / "config.json"
    has_safetensors = any(path.glob("*.safetensors"))
    if load_format == "gguf" or (load_format == "auto" and not has_safetensors and not (path / ORBAX_FOLDER).is_dir()):
        gguf = find_gguf(path)
        if gguf is not None:
            return _gguf(model, gguf, load_format)
        if load_format == "gguf":
            raise CheckpointError(f"{path}: no GGUF file; load_format=gguf needs one")
    if not config.is_file():
        raise CheckpointError(f"{path}: no config.json; expected a model directory in Hugging Face's layout")
    # The config is read before the weights are looked for: an error in it is the more useful message.
    raw = read_json_object(config)
    generation = path / "generation_config.json"
    weight_format: WeightFormat = "safetensors"
    files, weight_map = (), None
    if load_format == "orbax" or (load_format == "auto" and (path / ORBAX_FOLDER).is_dir()):
        weight_format = "orbax"
        if not (path / ORBAX_FOLDER).is_dir():
            raise CheckpointError(f"{path}: no folder {ORBAX_FOLDER!r}; make one with ryzjax convert")
    elif load_format != "dummy":
        files, weight_map = find_safetensors(path)
    return CheckpointSource(
        name=model,
        path=path,
        config=raw,
        config_name=str(config),
        generation=read_json_object(generation) if generation.is_file() else None,
        weight_format=weight_format,
        weight_files=files,
        weight_map=weight_map,
    )
