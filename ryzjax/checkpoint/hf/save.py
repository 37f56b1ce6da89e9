"""save_hf: writes a plain model as a Hugging Face directory, with config.json, safetensors and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.hf.config import text_model_config
from ryzjax.checkpoint.safetensors_write import TensorToWrite, write_safetensors
from ryzjax.checkpoint.stored_weight import TensorRows, WholeTensors
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import family_of

__all__ = ["PLAIN_DTYPES", "in_dtype", "save_hf"]

PLAIN_DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""The dtypes in which plain weights can be written, by name."""

_SHARD_BYTES = 4 * 2**30

Get = Callable[[str], np.ndarray]
"""A function from our weight name to its values on the host."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A weight that makes up a tensor of a file, or its rows from `first` on."""

    name: str
    first: int


def save_hf(
    folder: Path,
    model: AbstractModel,
    get: Get,
    *,
    config: Mapping[str, object],
    generation: Mapping[str, object] | None = None,
    copy_texts: Callable[[Path], None],
) -> None:
    """Writes a plain model in shards of at most 4 GiB. A larger tensor gets its own shard.

    Args:
      folder: The folder to write; it is created if it does not exist. A model in it is replaced.
      model: The abstract model that is written.
      get: Returns the values of a weight in the model's dtype. It is called when a tensor is written, so that one
        tensor is on the host at a time.
      config: The content of config.json in Hugging Face's spelling. Of a multimodal config, the text model's part is
        written.
      generation: The content of generation_config.json; None writes no such file.
      copy_texts: Writes the tokenizer's files into the given folder.

    Raises:
      ConfigError: The model is quantized, or its family stores weights in a way that RyzJAX can only read.
      CheckpointError: The files cannot be written.
    """
    if model.quantization:
        raise ConfigError("a quantized model cannot be saved as a plain one; use a plain model instead")
    tensors = _tensors(model, get)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards = _shards(tensors)
        index: dict[str, str] = {}
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / name, shard)
            index.update(dict.fromkeys(shard, name))
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
            (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        copy_texts(folder)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), encoding="utf-8")
        raw = {key: value for key, value in text_model_config(config).items() if key not in ("dtype", "torch_dtype")}
        raw.pop("quantization_config", None)
        # config.json comes last: without it, the directory of an interrupted run is not mistaken for a model.
        text = json.dumps({**raw, "dtype": model.config.dtype}, indent=1)
        (folder / "config.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); check the path, its permissions and the free space"
        ) from error


def in_dtype(model: AbstractModel, dtype: str) -> AbstractModel:
    """Returns a plain model with its weights in another dtype, for writing. float16 is allowed; no model runs in it.

    Args:
      model: The plain model.
      dtype: A key of `PLAIN_DTYPES`.
    """
    config = replace(model.config, dtype=cast("Literal['float32']", dtype))
    specs = {name: replace(spec, dtype=PLAIN_DTYPES[dtype]) for name, spec in model.weights.items()}
    return replace(model, config=config, weights=specs)


def _tensors(model: AbstractModel, get: Get) -> dict[str, TensorToWrite]:
    """Returns tensor name in the files -> the tensor, for all weights."""
    family = HF_FAMILIES[family_of(model.config)]
    parts: dict[str, list[_Part]] = {}
    tensors: dict[str, TensorToWrite] = {}
    for name, spec in model.weights.items():
        stored = family.weight(name, model.config, family.prefixes[0], frozenset())
        dtype = np.dtype(spec.dtype)
        if isinstance(stored, WholeTensors) and not stored.is_stack:
            parts.setdefault(stored.names[0], []).append(_Part(name=name, first=0))
        elif isinstance(stored, WholeTensors):
            for index, tensor in enumerate(stored.names):
                one = partial(_expert, get, name, index)
                tensors[tensor] = TensorToWrite(dtype=dtype, shape=spec.shape[1:], get=one)
        elif isinstance(stored, TensorRows) and _is_a_run_of_rows(stored) and len(spec.shape) < 3:
            parts.setdefault(stored.name, []).append(_Part(name=name, first=stored.rows.start or 0))
        else:
            raise ConfigError(
                f"{name} of {type(model.config).__name__} is stored in a layout that RyzJAX reads but does not write; "
                "weights of this family cannot be saved in Hugging Face's layout"
            )
    for tensor, found in parts.items():
        found.sort(key=lambda part: part.first)
        specs = [model.weights[part.name] for part in found]
        rows = sum(spec.shape[0] for spec in specs)
        shape = (rows, *specs[0].shape[1:])
        names = tuple(part.name for part in found)
        tensors[tensor] = TensorToWrite(dtype=np.dtype(specs[0].dtype), shape=shape, get=partial(_joined, get, names))
    return dict(sorted(tensors.items()))


def _is_a_run_of_rows(stored: TensorRows) -> bool:
    return not stored.is_transposed and stored.rows.step in (None, 1)


def _joined(get: Get, names: tuple[str, ...]) -> np.ndarray:
    arrays = [get(name) for name in names]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _expert(get: Get, name: str, index: int) -> np.ndarray:
    return get(name)[index]


def _shards(tensors: Mapping[str, TensorToWrite]) -> list[dict[str, TensorToWrite]]:
    shards: list[dict[str, TensorToWrite]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
