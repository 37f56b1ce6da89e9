"""Where a model's files are: a local directory, one file, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.shipped import DEMO_MODEL, demo_folder

__all__ = ["ORBAX_FOLDER", "CheckpointSource", "LoadFormat", "resolve_source"]

LoadFormat = Literal["auto", "safetensors", "gguf", "orbax", "dummy"]
WeightFormat = Literal["safetensors", "gguf", "orbax"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_GGUF = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*\.gguf)")
_TEXT_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
]
# Sub-folders and `consolidated*` hold the same weights once more in the vendor's own layout.
_NOT_DOWNLOADED = ["*/*.safetensors", "*/*.json", "*/*.txt", "*/*.gguf", "*/tokenizer*", "consolidated*"]
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 100_000_000
_GGUF_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
ORBAX_FOLDER = "orbax"
"""Of a directory that `ryzjax convert` wrote: where its arrays are."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """The files of one model, found and parsed but for the tensors.

    Attributes:
      name: what the user asked for.
      path: the directory (or, for random weights, the config file).
      config: the parsed `config.json`.
      config_name: its file name with path, for messages.
      generation: the parsed `generation_config.json`, if there is one.
      weight_format: of the weight files.
      weight_files: empty where weights are random.
      weight_map: tensor name -> file of the sharded index, or None for a single file.
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
        """Where tokenizer files would lie."""
        return self.path if self.path.is_dir() else self.path.parent


def resolve_source(
    model: str, *, load_format: LoadFormat = "auto", revision: str | None = None, show_progress: bool = True
) -> CheckpointSource:
    """Finds a model's files, downloading them where `model` is a Hub id.

    Args:
      model: a local directory; a GGUF file; a config file (with load_format "dummy" only); "ryzjax/demo", the model
        that comes with the package; or a Hub id such as "org/name", or "org/name/file.gguf".
      load_format: "auto" takes what is there, safetensors before GGUF; "dummy" needs no weight files.
      revision: branch, tag or commit on the Hub.
      show_progress: a bar on stderr while downloading.

    Raises:
      CheckpointError: nothing there, nothing to download it from, or files that are missing or unreadable.
      ConfigError: a bare config file without load_format "dummy", or a revision of a local directory.
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
        part = _GGUF_PART.fullmatch(name)
        pattern = name if part is None else f"{part[1]}-*-of-{part[3]}.gguf"
        folder = _download(repository, [pattern], revision, show_progress)
        if not (folder / name).is_file():
            raise CheckpointError(f"model={model!r}: the repository {repository} has no file {name}; check the name")
        return _gguf(model, folder / name, load_format)
    if not path.exists():
        if not _HUB_ID.fullmatch(model):
            raise CheckpointError(
                f"model={model!r}: no such directory; expected a directory with config.json, or a Hugging Face id "
                "such as org/name"
            )
        weights = [] if load_format == "dummy" else ["*.safetensors", _INDEX]
        path = _download(model, [*_TEXT_FILES, *weights], revision, show_progress)
    return _directory(model, path, load_format)


def _config_file(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    if load_format != "dummy":
        raise ConfigError(
            f"model={model!r} is a file, and load_format={load_format!r} needs a directory with weights; "
            "name the directory, or take random weights with --load-format dummy"
        )
    return CheckpointSource(name=model, path=path, config=_read_object(path), config_name=str(path))


def _gguf(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    """A GGUF file describes the whole model; of one in parts, the first does."""
    if load_format not in ("auto", "gguf", "dummy"):
        raise ConfigError(f"model={model!r} is a GGUF file, not {load_format}; leave load_format out")
    files = [path]
    part = _GGUF_PART.fullmatch(path.name)
    if part is not None:
        files = [path.with_name(f"{part[1]}-{i + 1:05d}-of-{part[3]}.gguf") for i in range(int(part[3]))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{path}: one of {len(files)} parts, of which {len(missing)} are missing: {', '.join(missing[:4])}. "
                "Download them."
            )
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
        weight_files=() if load_format == "dummy" else tuple(files),
    )


def _only_gguf(path: Path) -> Path | None:
    """The GGUF file of a directory that has nothing else to load: the only one, or the first part of the only one."""
    files = sorted(path.glob("*.gguf"))
    firsts = [file for file in files if (part := _GGUF_PART.fullmatch(file.name)) is None or int(part[2]) == 1]
    if len(firsts) > 1:
        names = ", ".join(file.name for file in firsts[:4])
        raise CheckpointError(f"{path}: {len(firsts)} GGUF models ({names}); name the file to be loaded")
    return firsts[0] if firsts else None


def _directory(model: str, path: Path, load_format: LoadFormat) -> CheckpointSource:
    config = path / "config.json"
    has_safetensors = any(path.glob("*.safetensors"))
    if load_format == "gguf" or (load_format == "auto" and not has_safetensors and not (path / ORBAX_FOLDER).is_dir()):
        gguf = _only_gguf(path)
        if gguf is not None:
            return _gguf(model, gguf, load_format)
        if load_format == "gguf":
            raise CheckpointError(f"{path}: no GGUF file; expected one, as load_format is gguf")
    if not config.is_file():
        raise CheckpointError(f"{path}: no config.json; expected a model directory in Hugging Face layout")
    # Read before the weights are looked for: what is wrong with the config is the better message.
    raw = _read_object(config)
    generation = path / "generation_config.json"
    weight_format: WeightFormat = "safetensors"
    files, weight_map = (), None
    if load_format == "orbax" or (load_format == "auto" and (path / ORBAX_FOLDER).is_dir()):
        weight_format = "orbax"
        if not (path / ORBAX_FOLDER).is_dir():
            raise CheckpointError(f"{path}: no folder {ORBAX_FOLDER!r}; make one with ryzjax convert")
    elif load_format != "dummy":
        files, weight_map = _find_weights(path)
    return CheckpointSource(
        name=model,
        path=path,
        config=raw,
        config_name=str(config),
        generation=_read_object(generation) if generation.is_file() else None,
        weight_format=weight_format,
        weight_files=files,
        weight_map=weight_map,
    )


def _find_weights(path: Path) -> tuple[tuple[Path, ...], Mapping[str, Path] | None]:
    """One `model.safetensors`, else the sharded index, else the only safetensors file there is."""
    single = path / "model.safetensors"
    if single.is_file():
        return (single,), None
    index = path / _INDEX
    if index.is_file():
        return _read_index(index)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return (files[0],), None
    if files:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(
            f"{path}: {len(files)} safetensors files ({names}, ...) but no {_INDEX} that says which tensor is where; "
            "download the index too"
        )
    pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{path}: weights only as pickled files ({', '.join(pickled[:4])}), which run code when they are read and "
            "are never loaded here; convert them with transformers: save_pretrained(dir, safe_serialization=True)"
        )
    raise CheckpointError(
        f"{path}: no model.safetensors and no {_INDEX}; download the weights, or take random ones with "
        "--load-format dummy"
    )


def _read_index(index: Path) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    raw = _read_object(index).get("weight_map")
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError(f"{index}: weight_map is {raw!r:.100}; expected tensor -> file. Download it again.")
    weight_map: dict[str, Path] = {}
    for tensor, name in raw.items():
        # A name with a folder in it could lead anywhere on this machine.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {tensor!r} is said to be in {name!r}; expected a .safetensors file beside the index"
            )
        weight_map[tensor] = index.parent / name
    files = tuple(sorted(set(weight_map.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: names {len(files)} files, of which {len(missing)} are missing: {', '.join(missing[:4])}. "
            "Download them."
        )
    return files, weight_map


def _read_object(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes; expected a JSON file under {_MAX_JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its rights") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def _download(model: str, patterns: list[str], revision: str | None, show_progress: bool) -> Path:
    # Imported here: a local directory needs neither the library nor its start-up time.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars_were_off = are_progress_bars_disabled()
    if not show_progress:
        disable_progress_bars()
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_DOWNLOADED)
        )
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"model={model!r}: not a directory here, and the Hugging Face Hub has no such public repository; check the "
            "name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"model={model!r}: not a directory here, not in the local Hugging Face cache, and the Hub cannot be "
            "reached; connect to the network, or name a local directory"
        ) from error
    except (HFValidationError, OSError, RuntimeError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"model={model!r}{at}: download from the Hugging Face Hub failed "
            f"({type(error).__name__}: {error}); check the name, or name a local directory"
        ) from error
    finally:
        if not show_progress and not bars_were_off:
            enable_progress_bars()
