"""read_adapter: reads a PEFT directory into an Adapter, checked against a model.

A directory has `adapter_config.json` and `adapter_model.safetensors`. The tensors of a layer are
`base_model.model.<module>.lora_A.weight` [r, K], `.lora_B.weight` [N, r] and, for DoRA, `.lora_magnitude_vector` [N],
with or without `.weight` (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.peft.config import CONFIG_FILE, PeftConfig, read_peft_config
from ryzjax.checkpoint.peft.modules import ModuleWeights, PeftModule, PeftModules, peft_modules, split
from ryzjax.checkpoint.peft.tensor_names import (
    BASE_GROUP_KEY,
    BASE_WEIGHTS_KEY,
    PREFIX,
    TENSOR_NAME,
    WEIGHTS_FILE,
    shortest_patterns,
)
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.stored_weight import FLOATS
from ryzjax.errors import CheckpointError
from ryzjax.lora.adapter import Adapter, BaseQuantization, LoraWeights, OnLoadWeights, check_adapter
from ryzjax.lora.base_name import base_name
from ryzjax.lora.config import shortest_endings
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import family_of

__all__ = ["read_adapter"]

_PICKLED = "adapter_model.bin"
_COPY_OF_BASE = ".base_layer.weight"
"""Ending of a tensor that is no part of the adapter: PEFT saves an adapted head's own weight beside it."""


def read_adapter(folder: Path, model: AbstractModel) -> Adapter:
    """Reads a LoRA adapter and checks it against a model. No field or tensor that would change a result is ignored.

    Args:
      folder: The directory with adapter_config.json and adapter_model.safetensors.
      model: The model that the adapter is for. Modules that Hugging Face fuses (Phi 3's q, k and v) are split into our
        layers.

    Returns:
      The adapter, in float32, on the host.

    Raises:
      CheckpointError: A file is missing or damaged, or the adapter belongs to another base or has another rank.
      UnsupportedModelError: The kind of adapter, or one of its fields, is not supported.
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
        rounding = _base_quantization(file)
    chosen = [layer for layer in model.linears if layer in layers]
    # The matrices stay on the host. A server casts them there, and copying each to a device is slow while other threads
    # are busy.
    weights = {
        layer: LoraWeights(a=layers[layer].a, b=layers[layer].b, magnitude=layers[layer].magnitude) for layer in chosen
    }
    paths = {layer: path for path, module in modules.modules.items() for layer in module.parts}
    lora = replace(
        config.lora,
        targets=shortest_endings(chosen, model.linears),
        rank_pattern=shortest_patterns(
            {layer: config.lora.rank_of(paths[layer]) for layer in chosen}, config.lora.rank, model.linears
        ),
        alpha_pattern=shortest_patterns(
            {layer: config.lora.alpha_of(paths[layer]) for layer in chosen}, config.lora.alpha, model.linears
        ),
    )
    adapter = Adapter(config=lora, weights=weights, base_model=config.base_model, base_quantization=rounding)
    check_adapter(adapter, model.linears, name=str(folder))
    return adapter


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"adapter {folder}: no such directory; expected one that PEFT or RyzJAX wrote")
    if (folder / WEIGHTS_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        return  # `read_peft_config` reports a missing config
    if (folder / _PICKLED).is_file():
        raise CheckpointError(
            f"adapter {folder}: its weights are pickled ({_PICKLED}), and reading those can run code; load it with "
            "PEFT and save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"adapter {folder}: no {WEIGHTS_FILE}; copy the whole directory, or save the adapter again")


def _tensors(file: SafetensorsFile, config: PeftConfig) -> dict[str, dict[str, str]]:
    """Returns module path -> part ("lora_A", "lora_B" or "lora_magnitude_vector") -> tensor name."""
    found: dict[str, dict[str, str]] = {}
    for name, entry in file.entries.items():
        if name.startswith(PREFIX) and name.endswith(_COPY_OF_BASE):
            continue
        match = TENSOR_NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is no part of a LoRA of linear layers (lora_A, lora_B, "
                "lora_magnitude_vector). Trained embeddings and whole modules are not supported; merge the adapter "
                "with PEFT"
            )
        if entry.dtype_name not in FLOATS:
            raise CheckpointError(f"{file.path}: tensor {name!r} is {entry.dtype_name}; expected one of {FLOATS}")
        part = match["part"] or match["dora"]
        if part in found.setdefault(match["path"], {}):
            raise CheckpointError(f"{file.path}: {part} of {match['path']!r} appears twice; save the adapter again")
        found[match["path"]][part] = name
    if not found:
        raise CheckpointError(f"{file.path}: the adapter is empty: it has no tensors; save it again")
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.lora.use_dora else set())
    for path, parts in found.items():
        if missing := expected - set(parts):
            raise CheckpointError(
                f"{file.path}: {path!r} has {', '.join(sorted(parts))} but no {', '.join(sorted(missing))}; the file "
                "is incomplete; save the adapter again"
            )
        if extra := set(parts) - expected:
            raise CheckpointError(
                f"{file.path}: {path!r} has {', '.join(extra)}, but in {CONFIG_FILE} use_dora is false; one of "
                "the two is wrong"
            )
    return found


def _modules_of(model: AbstractModel, paths: Iterable[str]) -> PeftModules:
    """Returns the model's modules under the prefix that fits most of the paths; under the usual one if none fits."""
    paths = set(paths)
    candidates = [peft_modules(model, prefix) for prefix in HF_FAMILIES[family_of(model.config)].prefixes]
    return max(candidates, key=lambda modules: len(paths & set(modules.modules)))  # the first of equals


def _check_paths(file: Path, paths: Iterable[str], modules: PeftModules, config: PeftConfig, model: str) -> None:
    """Checks that every tensor belongs to a module that the config targets, and that every such module has tensors."""
    base = base_name(config.base_model) or "a base that the adapter does not name"
    paths = set(paths)
    for path in sorted(paths):
        if path in modules.others:
            raise CheckpointError(f"{file}: {path!r} is an expert; adapters of experts are not supported")
        if path not in modules.modules:
            raise CheckpointError(
                f"{file}: the adapter has {path!r}, and this model ({model}) has no such linear layer"
                f"{' of its own: its head is the embedding' if path == 'lm_head' else ''}; the adapter was trained on "
                f"{base}"
            )
        if not config.is_target(path):
            raise CheckpointError(
                f"{file}: the adapter has {path!r}, which target_modules in {CONFIG_FILE} does not name. PEFT would "
                "ignore it; fix the config"
            )
    if config.is_partial:
        return
    for path, module in modules.modules.items():
        is_router = all(layer.endswith(".router") for layer in module.parts)
        if path not in paths and config.is_target(path) and not is_router:
            raise CheckpointError(
                f"{file}: target_modules in {CONFIG_FILE} names {path!r} of this model ({model}), and the adapter has "
                f"no weights for it; the adapter was trained on {base}"
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
                f". The adapter was trained on {base_name(config.base_model) or 'another model'}, or its config "
                "names another rank"
            )
        arrays[part] = np.empty(shape, np.float32)
        file.read(name, tuple(slice(0, size) for size in shape), arrays[part])
        if not np.isfinite(arrays[part]).all():
            raise CheckpointError(f"{file.path}: {name!r} has NaN or infinite values; the training diverged")
    return ModuleWeights(
        a=arrays["lora_A"],
        b=arrays["lora_B"],
        magnitude=arrays.get("lora_magnitude_vector"),
        scale=config.lora.scale_of(module.path),
    )


def _base_quantization(file: SafetensorsFile) -> BaseQuantization | None:
    """Returns how the adapter's base was quantized while loading, from the header of the safetensors file."""
    weights, group = file.metadata.get(BASE_WEIGHTS_KEY), file.metadata.get(BASE_GROUP_KEY, "")
    if weights is None:
        return None
    known = get_args(OnLoadWeights)
    if weights not in known or not group.isdecimal():
        raise CheckpointError(
            f"{file.path}: its base was quantized to {weights!r} in groups of {group!r}; expected one of "
            f"{', '.join(known)} and a number of features. Save the adapter again, or use a newer RyzJAX"
        )
    return BaseQuantization(weights=cast("OnLoadWeights", weights), group=int(group))
