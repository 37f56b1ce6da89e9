"""Writes and reads converted models: directories that load without name maps, casts or dequantization.

    config.json  generation_config.json  tokenizer files    in Hugging Face's layout, whatever was converted
    orbax/                                                  every weight under our name, with the values in memory

Orbax writes and reads each device's shard separately (https://orbax.readthedocs.io).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import jax
import numpy as np

from ryzjax.bits import from_bits, to_bits
from ryzjax.checkpoint.source import ORBAX_FOLDER, CheckpointSource
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.loading.text_files import copy_text_files
from ryzjax.models.config import ModelConfig
from ryzjax.models.weight_spec import WeightSpec

__all__ = ["load_converted", "save_converted"]


def save_converted(
    folder: Path, source: CheckpointSource, config: ModelConfig, weights: Mapping[str, jax.Array]
) -> None:
    """Writes a loaded model as a directory that `resolve_source` finds and `load_converted` reads.

    Args:
      folder: The directory to write. It must be empty or not exist.
      source: The checkpoint that was loaded. Its config and tokenizer files are copied.
      config: The model's config. Its dtype is the dtype of the weights.
      weights: Our weight name -> array.

    Raises:
      ConfigError: The folder is not empty.
      CheckpointError: The folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; name a folder that does not exist yet")
    import orbax.checkpoint as ocp

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / ORBAX_FOLDER).resolve(), {name: from_bits(a) for name, a in weights.items()})
            checkpointer.wait_until_finished()
        copy_text_files(source.directory, folder)
        if source.generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(source.generation, indent=1), encoding="utf-8")
        raw = {key: value for key, value in source.config.items() if key not in ("dtype", "torch_dtype")}
        raw.pop("quantization_config", None)
        # config.json comes last: without it, the directory of an interrupted run is not mistaken for a model.
        (folder / "config.json").write_text(json.dumps({**raw, "dtype": config.dtype}, indent=1), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); check the path, its permissions and the free space"
        ) from error


def load_converted(source: CheckpointSource, wanted: Mapping[str, WeightSpec]) -> dict[str, jax.Array]:
    """Reads a converted model's weights. Each device reads only its own shard.

    Args:
      source: A checkpoint whose weight format is "orbax".
      wanted: Our weight name -> its shape, dtype and sharding.

    Raises:
      CheckpointError: The files are damaged, or belong to another model than config.json describes.
    """
    import orbax.checkpoint as ocp

    path = (source.path / ORBAX_FOLDER).resolve()
    target = {name: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding) for name, w in wanted.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            _check_shapes(path, checkpointer.metadata(path), wanted)
            weights = cast("dict[str, jax.Array]", checkpointer.restore(path, target))
        # Orbax and tensorstore raise all of these for damaged or missing files.
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); convert the model again") from error
    return {name: _stored(weights.pop(name), spec) for name, spec in wanted.items()}


def _stored(values: jax.Array, spec: WeightSpec) -> jax.Array:
    if np.dtype(spec.stored_dtype) == values.dtype:
        return values
    return jax.jit(to_bits, static_argnums=1, out_shardings=spec.sharding)(values, np.dtype(spec.stored_dtype))


def _check_shapes(path: Path, metadata: object, wanted: Mapping[str, WeightSpec]) -> None:
    tree = cast("Mapping[str, jax.ShapeDtypeStruct]", getattr(metadata, "item_metadata", metadata))
    saved = {name: tuple(tree[name].shape) for name in tree}
    if saved.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
        raise CheckpointError(
            f"{path}: lacks {missing[:4]} and has {extra[:4]}, which config.json does not describe; convert the model "
            "again"
        )
    for name, spec in wanted.items():
        if saved[name] != tuple(spec.shape):
            raise CheckpointError(
                f"{path}: weight {name!r} has shape {list(saved[name])}; expected {list(spec.shape)} by config.json; "
                "convert the model again"
            )
