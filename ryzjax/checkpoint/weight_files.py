"""Finds the weight files of a local model: safetensors with or without an index, or GGUF in one or more parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ryzjax.checkpoint.json_object import read_json_object
from ryzjax.errors import CheckpointError

__all__ = ["SAFETENSORS_INDEX", "find_gguf", "find_safetensors", "gguf_parts", "gguf_pattern"]

SAFETENSORS_INDEX = "model.safetensors.index.json"

_GGUF_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_safetensors(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, Path] | None]:
    """Finds a directory's safetensors files.

    `model.safetensors` comes first, then the files of the index, then the only safetensors file there is.

    Returns:
      The files, and the index as tensor name -> file; None without an index.

    Raises:
      CheckpointError: There are no such files, a file that the index names is missing, or the index is damaged.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,), None
    index = folder / SAFETENSORS_INDEX
    if index.is_file():
        return _read_index(index)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return (files[0],), None
    if files:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(
            f"{folder}: {len(files)} safetensors files ({names}, ...) but no {SAFETENSORS_INDEX} that says which "
            "tensor is in which file; download the index too"
        )
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder}: the weights are only in pickled files ({', '.join(pickled[:4])}). Reading those runs code, so "
            "RyzJAX never loads them; convert them with transformers: save_pretrained(dir, safe_serialization=True)"
        )
    raise CheckpointError(
        f"{folder}: no model.safetensors and no {SAFETENSORS_INDEX}; download the weights, or use random ones with "
        "--load-format dummy"
    )


def find_gguf(folder: Path) -> Path | None:
    """Returns the only GGUF model of a directory: its file, or the first of its parts. None where there is none.

    Raises:
      CheckpointError: The directory has several GGUF models.
    """
    files = sorted(folder.glob("*.gguf"))
    firsts = [file for file in files if (part := _GGUF_PART.fullmatch(file.name)) is None or int(part[2]) == 1]
    if len(firsts) > 1:
        names = ", ".join(file.name for file in firsts[:4])
        raise CheckpointError(f"{folder}: {len(firsts)} GGUF models ({names}); name the file to load")
    return firsts[0] if firsts else None


def gguf_pattern(name: str) -> str:
    """Returns a glob pattern that matches a GGUF file of this name and, if it is one part of a model, all parts."""
    part = _GGUF_PART.fullmatch(name)
    return name if part is None else f"{part[1]}-*-of-{part[3]}.gguf"


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """Returns all parts of a GGUF model in order, given any of them.

    Raises:
      CheckpointError: A part is missing.
    """
    part = _GGUF_PART.fullmatch(path.name)
    if part is None:
        return (path,)
    files = tuple(path.with_name(f"{part[1]}-{i + 1:05d}-of-{part[3]}.gguf") for i in range(int(part[3])))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: one of {len(files)} parts, of which {len(missing)} are missing: {', '.join(missing[:4])}. "
            "Download them."
        )
    return files


def _read_index(index: Path) -> tuple[tuple[Path, ...], Mapping[str, Path]]:
    raw = read_json_object(index).get("weight_map")
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
