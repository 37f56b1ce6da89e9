"""PEFT directories: adapter_config.json and adapter_model.safetensors, read for a model and written.

https://huggingface.co/docs/peft/developer_guides/checkpoint: tensors are `base_model.model.<module>.lora_A.weight`
[r, K], `.lora_B.weight` [N, r], and of DoRA `.lora_magnitude_vector` [N], with or without `.weight`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast, get_args

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.peft.config import CONFIG_FILE, PeftConfig, peft_config_json, read_peft_config
from ryzjax.checkpoint.peft.modules import ModuleWeights, PeftModule, PeftModules, join, peft_modules, split
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.safetensors_write import TensorToWrite, write_safetensors
from ryzjax.checkpoint.stored import FLOATS
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.lora.adapter import Adapter, BaseRounding, LoraWeights, OnLoadWeights, check_adapter
from ryzjax.lora.base_name import base_name
from ryzjax.lora.config import shortest_endings
from ryzjax.models.registry import AbstractModel, family_of

__all__ = ["WEIGHTS_FILE", "read_adapter", "write_adapter"]

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_TENSOR = re.compile(
    rf"{re.escape(_PREFIX)}(?P<path>.+)\.(?:(?P<part>lora_[AB])\.weight|(?P<dora>lora_magnitude_vector)(?:\.weight)?)"
)
_COPY_OF_BASE = ".base_layer.weight"
"""PEFT saves an adapted head's own weight beside its adapter."""
_ROUNDED_TO, _ROUNDED_IN_GROUPS_OF = "ryzjax.base_weights", "ryzjax.base_weights_group"
"""Texts in the header of the tensors, which PEFT does not look at: adapter_config.json has no place for them."""
Number = TypeVar("Number", int, float)

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def read_adapter(folder: Path, model: AbstractModel) -> Adapter:
    """Reads a LoRA and checks it against a model; nothing of it is ignored that would change a result.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      model: what it is for; layers that HF fuses (Phi 3's q, k and v) are taken apart.

    Returns:
      The adapter, in float32.

    Raises:
      CheckpointError: a file is missing or damaged, or the adapter is of another base or rank.
      UnsupportedModelError: a kind of adapter, or a field, that is not supported.
    """
    _check_folder(folder)
    config = read_peft_config(folder)
    with closing(SafetensorsFile(folder / WEIGHTS_FILE)) as file:
        tensors = _tensors(file, config)
        modules = _modules_of(model, tensors)
        _check_paths(file.path, tensors, modules, config, type(model.config).__name__)
        layers: dict[str, ModuleWeights] = {}
        for path, parts in tensors.items():
            module = modules.modules[path]
            layers |= split(module, _read_module(file, module, parts, config))
        rounding = _rounding(file)
    chosen = [layer for layer in model.linears if layer in layers]
    # They stay on the host: a server casts them there, and putting each on a device takes long beside busy threads.
    weights = {
        layer: LoraWeights(a=layers[layer].a, b=layers[layer].b, magnitude=layers[layer].magnitude) for layer in chosen
    }
    paths = {layer: path for path, module in modules.modules.items() for layer in module.parts}
    lora = replace(
        config.lora,
        targets=shortest_endings(chosen, model.linears),
        rank_pattern=_patterns(
            {layer: config.lora.rank_of(paths[layer]) for layer in chosen}, config.lora.rank, model.linears
        ),
        alpha_pattern=_patterns(
            {layer: config.lora.alpha_of(paths[layer]) for layer in chosen}, config.lora.alpha, model.linears
        ),
    )
    adapter = Adapter(config=lora, weights=weights, base_model=config.base_model, base_rounding=rounding)
    check_adapter(adapter, model.linears, name=str(folder))
    return adapter


def write_adapter(
    folder: Path, adapter: Adapter, model: AbstractModel, *, base_model: str, dtype: str = "float32"
) -> None:
    """Writes a LoRA as PEFT does. Each file is whole or not there, and nothing is replaced before both are written.

    Layers that HF fuses are joined, exactly (`peft_modules.join`).

    Args:
      folder: made where it is missing; an adapter in it is replaced.
      base_model: directory or Hub id of what the adapter belongs to, for PEFT.
      dtype: of the tensors: "float32", "bfloat16" or "float16".

    Raises:
      CheckpointError: it cannot be written, or not be said in PEFT's terms.
      ConfigError: another dtype; an adapter that does not fit the model, or whose base was changed with its beginning.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} of an adapter; expected one of {', '.join(_DTYPES)}")
    if adapter.config.init in ("pissa", "loftq"):
        raise ConfigError(
            f"an adapter with init={adapter.config.init!r} belongs to its own, changed base; write the `difference` to "
            "its beginning (PiSSA), or save the base too and write it with init='default'"
        )
    check_adapter(adapter, model.linears, name=str(folder))
    modules = peft_modules(model, HF_FAMILIES[family_of(model.config)].prefixes[0])
    joined = _joined(adapter, modules)
    ranks = {path: weights.a.shape[0] for path, weights in joined.items()}
    power = 0.5 if adapter.config.use_rslora else 1.0
    alphas = {path: _alpha(adapter, modules.modules[path], joined[path], power) for path in joined}
    config = replace(
        adapter.config,
        rank_pattern=_patterns(ranks, adapter.config.rank, modules.paths),
        alpha_pattern=_patterns(alphas, adapter.config.alpha, modules.paths),
    )
    targets = shortest_endings(joined, modules.paths)
    rounding = adapter.base_rounding
    texts = {} if rounding is None else {_ROUNDED_TO: rounding.weights, _ROUNDED_IN_GROUPS_OF: str(rounding.group)}
    _write(folder, joined, peft_config_json(config, targets, base_model), texts, np.dtype(_DTYPES[dtype]))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"adapter {folder}: no such directory; expected one that PEFT or ryzjax wrote")
    if (folder / WEIGHTS_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        return  # a missing config is told of by who reads it
    if (folder / _PICKLED).is_file():
        raise CheckpointError(
            f"adapter {folder}: its weights are pickled ({_PICKLED}), which can run code when read; load it with PEFT "
            "and save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"adapter {folder}: no {WEIGHTS_FILE}; copy it completely, or save it again")


def _tensors(file: SafetensorsFile, config: PeftConfig) -> dict[str, dict[str, str]]:
    """Module path -> "lora_A", "lora_B", "lora_magnitude_vector" -> tensor name."""
    found: dict[str, dict[str, str]] = {}
    for name, entry in file.entries.items():
        if name.startswith(_PREFIX) and name.endswith(_COPY_OF_BASE):
            continue
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is no part of a LoRA of linear layers (lora_A, lora_B, "
                "lora_magnitude_vector); embeddings and whole modules that were trained too are not supported: merge "
                "the adapter with PEFT"
            )
        if entry.dtype_name not in FLOATS:
            raise CheckpointError(f"{file.path}: tensor {name!r} is {entry.dtype_name}; expected one of {FLOATS}")
        part = match["part"] or match["dora"]
        if part in found.setdefault(match["path"], {}):
            raise CheckpointError(f"{file.path}: {part} of {match['path']!r} is there twice; save the adapter again")
        found[match["path"]][part] = name
    if not found:
        raise CheckpointError(f"{file.path}: no tensors; the adapter is empty, save it again")
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.lora.use_dora else set())
    for path, parts in found.items():
        if missing := expected - set(parts):
            raise CheckpointError(
                f"{file.path}: {path!r} has {', '.join(sorted(parts))} but no {', '.join(sorted(missing))}; the file "
                "is not complete, save the adapter again"
            )
        if extra := set(parts) - expected:
            raise CheckpointError(
                f"{file.path}: {path!r} has {', '.join(extra)}, but {CONFIG_FILE} says use_dora is false; one of "
                "the two is wrong"
            )
    return found


def _modules_of(model: AbstractModel, paths: Iterable[str]) -> PeftModules:
    """The model's modules by the prefix that fits the adapter best; by the usual one where none does."""
    paths = set(paths)
    candidates = [peft_modules(model, prefix) for prefix in HF_FAMILIES[family_of(model.config)].prefixes]
    return max(candidates, key=lambda modules: len(paths & set(modules.modules)))  # the first of equals


def _check_paths(file: Path, paths: Iterable[str], modules: PeftModules, config: PeftConfig, model: str) -> None:
    """Every tensor belongs to a module that the config targets, and every module that it targets has tensors."""
    base = base_name(config.base_model) or "a base that it does not name"
    paths = set(paths)
    for path in sorted(paths):
        if path in modules.others:
            raise CheckpointError(f"{file}: {path!r} is an expert; adapters of experts are not supported")
        if path not in modules.modules:
            raise CheckpointError(
                f"{file}: the adapter has {path!r}, and this model ({model}) has no such linear layer"
                f"{' of its own: its head is the embedding' if path == 'lm_head' else ''}; it was made for {base}"
            )
        if not config.is_target(path):
            raise CheckpointError(
                f"{file}: the adapter has {path!r}, which target_modules in {CONFIG_FILE} does not name; PEFT would "
                "leave it out: fix the config"
            )
    if config.is_partial:
        return
    for path, module in modules.modules.items():
        is_router = all(layer.endswith(".router") for layer in module.parts)
        if path not in paths and config.is_target(path) and not is_router:
            raise CheckpointError(
                f"{file}: target_modules in {CONFIG_FILE} names {path!r} of this model ({model}), and the adapter has "
                f"no weights for it; it was made for {base}"
            )


def _read_module(
    file: SafetensorsFile, module: PeftModule, parts: Mapping[str, str], config: PeftConfig
) -> ModuleWeights:
    n, k = module.shape
    rank = config.lora.rank_of(module.path)
    expected = {"lora_A": (rank, k), "lora_B": (n, rank), "lora_magnitude_vector": (n,)}
    arrays: dict[str, np.ndarray] = {}
    for part, name in parts.items():
        shape = file.entries[name].shape
        if shape != expected[part]:
            raise CheckpointError(
                f"{file.path}: {name!r} is {list(shape)}; expected {list(expected[part])}, for rank {rank} on {n} x {k}"
                f". The adapter was made for {base_name(config.base_model) or 'another model'}, or its config "
                "names another rank"
            )
        arrays[part] = np.empty(shape, np.float32)
        file.read(name, tuple(slice(0, size) for size in shape), arrays[part])
        if not np.isfinite(arrays[part]).all():
            raise CheckpointError(f"{file.path}: {name!r} has values that are not finite; its training diverged")
    return ModuleWeights(
        a=arrays["lora_A"],
        b=arrays["lora_B"],
        magnitude=arrays.get("lora_magnitude_vector"),
        scale=config.lora.scale_of(module.path),
    )


def _joined(adapter: Adapter, modules: PeftModules) -> dict[str, ModuleWeights]:
    joined: dict[str, ModuleWeights] = {}
    for path, module in modules.modules.items():
        parts = {
            layer: ModuleWeights(
                a=np.asarray(weights.a, np.float32),
                b=np.asarray(weights.b, np.float32),
                magnitude=None if weights.magnitude is None else np.asarray(weights.magnitude, np.float32),
                scale=adapter.config.scale_of(layer),
            )
            for layer in module.parts
            if (weights := adapter.weights.get(layer)) is not None
        }
        if parts:
            joined[path] = join(module, parts)
    return joined


def _alpha(adapter: Adapter, module: PeftModule, weights: ModuleWeights, power: float) -> float:
    """alpha of a module; as our layers have it where their rank is the module's."""
    rank = weights.a.shape[0]
    for layer in module.parts:
        if layer in adapter.weights and adapter.config.rank_of(layer) == rank:
            return adapter.config.alpha_of(layer)
    return weights.scale * math.pow(rank, power)


def _patterns(values: Mapping[str, Number], default: Number, names: Iterable[str]) -> dict[str, Number]:
    """Regular expression -> value for the names whose value is not the default."""
    names = tuple(names)
    patterns: dict[str, Number] = {}
    for value in dict.fromkeys(values.values()):
        if value != default:
            endings = shortest_endings([name for name in values if values[name] == value], names)
            patterns |= {re.escape(ending): value for ending in endings}
    return patterns


def _rounding(file: SafetensorsFile) -> BaseRounding | None:
    """How the adapter's base was rounded, by the header of its tensors."""
    weights, group = file.metadata.get(_ROUNDED_TO), file.metadata.get(_ROUNDED_IN_GROUPS_OF, "")
    if weights is None:
        return None
    known = get_args(OnLoadWeights)
    if weights not in known or not group.isdecimal():
        raise CheckpointError(
            f"{file.path}: its base was rounded to {weights!r} in groups of {group!r}; expected one of "
            f"{', '.join(known)} and a number of features. Save the adapter again, or take a newer RyzJAX"
        )
    return BaseRounding(weights=cast("OnLoadWeights", weights), group=int(group))


def _write(
    folder: Path, joined: Mapping[str, ModuleWeights], config: str, texts: Mapping[str, str], dtype: np.dtype
) -> None:
    tensors: dict[str, TensorToWrite] = {}
    for path, weights in joined.items():
        arrays = {"lora_A.weight": weights.a, "lora_B.weight": weights.b}
        if weights.magnitude is not None:
            arrays["lora_magnitude_vector.weight"] = weights.magnitude
        for part, array in arrays.items():
            tensors[f"{_PREFIX}{path}.{part}"] = TensorToWrite.of(array.astype(dtype))
    partial = folder / f"{CONFIG_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(config)
            file.flush()
            os.fsync(file.fileno())
        write_safetensors(folder / WEIGHTS_FILE, tensors, metadata=texts)
        partial.replace(folder / CONFIG_FILE)
    except (OSError, CheckpointError) as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); check path, rights and space"
        ) from error
