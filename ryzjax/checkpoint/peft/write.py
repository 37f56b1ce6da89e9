"""write_adapter: writes an Adapter as a PEFT directory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.peft.config import CONFIG_FILE, peft_config_json
from ryzjax.checkpoint.peft.modules import ModuleWeights, PeftModule, PeftModules, join, peft_modules
from ryzjax.checkpoint.peft.tensor_names import (
    BASE_GROUP_KEY,
    BASE_WEIGHTS_KEY,
    PREFIX,
    WEIGHTS_FILE,
    shortest_patterns,
)
from ryzjax.checkpoint.safetensors_write import TensorToWrite, write_safetensors
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.lora.adapter import Adapter, check_adapter
from ryzjax.lora.config import shortest_endings
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import family_of

__all__ = ["write_adapter"]

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def write_adapter(
    folder: Path, adapter: Adapter, model: AbstractModel, *, base_model: str, dtype: str = "float32"
) -> None:
    """Writes a LoRA adapter as PEFT does.

    Each file is written whole under a temporary name and then renamed, the config last, so that an existing adapter is
    not replaced by a half-written one. Layers that Hugging Face fuses are joined into one module without loss (see
    `join`).

    Args:
      folder: The directory to write; it is created if it does not exist. An adapter in it is replaced.
      adapter: The adapter.
      model: The model that the adapter was trained on.
      base_model: Directory or Hub id of that model, for PEFT to load it.
      dtype: The dtype of the tensors: "float32", "bfloat16" or "float16".

    Raises:
      CheckpointError: The files cannot be written, or PEFT's format cannot express the adapter.
      ConfigError: The dtype is unknown, the adapter does not fit the model, or its initialization (PiSSA, LoftQ)
        changed the base.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} of an adapter is not supported; expected one of {', '.join(_DTYPES)}")
    if adapter.config.init in ("pissa", "loftq"):
        raise ConfigError(
            f"an adapter with init={adapter.config.init!r} belongs to its own, changed base; write the `difference` "
            "from its initial values (PiSSA), or save the base too and write the adapter with init='default'"
        )
    check_adapter(adapter, model.linears, name=str(folder))
    modules = peft_modules(model, HF_FAMILIES[family_of(model.config)].prefixes[0])
    joined = _joined(adapter, modules)
    ranks = {path: weights.a.shape[0] for path, weights in joined.items()}
    power = 0.5 if adapter.config.use_rslora else 1.0
    alphas = {path: _alpha(adapter, modules.modules[path], joined[path], power) for path in joined}
    config = replace(
        adapter.config,
        rank_pattern=shortest_patterns(ranks, adapter.config.rank, modules.paths),
        alpha_pattern=shortest_patterns(alphas, adapter.config.alpha, modules.paths),
    )
    targets = shortest_endings(joined, modules.paths)
    rounding = adapter.base_quantization
    texts = {} if rounding is None else {BASE_WEIGHTS_KEY: rounding.weights, BASE_GROUP_KEY: str(rounding.group)}
    _write(folder, joined, peft_config_json(config, targets, base_model), texts, np.dtype(_DTYPES[dtype]))


def _joined(adapter: Adapter, modules: PeftModules) -> dict[str, ModuleWeights]:
    """Returns module path -> the matrices of its adapted layers, joined."""
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
    """Returns the alpha of a module: that of a layer with the module's rank, or else the one that gives its scale."""
    rank = weights.a.shape[0]
    for layer in module.parts:
        if layer in adapter.weights and adapter.config.rank_of(layer) == rank:
            return adapter.config.alpha_of(layer)
    return weights.scale * math.pow(rank, power)


def _write(
    folder: Path, joined: Mapping[str, ModuleWeights], config: str, texts: Mapping[str, str], dtype: np.dtype
) -> None:
    tensors: dict[str, TensorToWrite] = {}
    for path, weights in joined.items():
        arrays = {"lora_A.weight": weights.a, "lora_B.weight": weights.b}
        if weights.magnitude is not None:
            arrays["lora_magnitude_vector.weight"] = weights.magnitude
        for part, array in arrays.items():
            tensors[f"{PREFIX}{path}.{part}"] = TensorToWrite.of(array.astype(dtype))
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
            f"{folder}: cannot be written ({error.strerror}); check the path, its permissions and the free space"
        ) from error
