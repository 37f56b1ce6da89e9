"""Loads a checkpoint's weights straight into their target dtype and sharding, several tensors at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from ryzjax.checkpoint.opened import OpenCheckpoint
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored import StoredWeight
from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.loading.buffers import aligned_empty
from ryzjax.loading.orbax import load_converted
from ryzjax.loading.progress import byte_progress
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import AbstractModel, abstract_model
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding import Placement

__all__ = ["check_checkpoint", "load_weights", "read_weights", "stored_model"]

_LISTED = 4
"""How many names a message lists before it says how many more there are."""
_MAX_THREADS = 8
"""Tensors read at once: enough to keep a disk's queue full, few enough for the host's memory."""


def load_weights(
    source: CheckpointSource, model: AbstractModel, *, show_progress: bool = False
) -> dict[str, jax.Array]:
    """Reads every weight of a model.

    Each device's part is copied (and cast) from the mapped file into a buffer of its own, so memory holds the model
    once, plus a tensor a thread at most where the device's memory is not the host's.

    Args:
      source: where the files are.
      model: says what is wanted: layers that are quantized in the checkpoint are dequantized where the model has
        plain ones. Tied models do not want `lm_head.weight`.
      show_progress: a bar on stderr.

    Returns:
      Our weight name -> array with the wanted shape, dtype and sharding, in the order of `model.weights`.

    Raises:
      CheckpointError: a tensor is missing, unexpected, of another shape or of a dtype that needs more than a cast.
    """
    if source.weight_format == "orbax":
        return load_converted(source, model.weights)
    with OpenCheckpoint(source, model.config) as checkpoint:
        check_checkpoint(checkpoint, model)
        total_bytes = sum(spec.nbytes for spec in model.weights.values())
        with byte_progress("Loading weights", total_bytes, show=show_progress) as advance:
            return read_weights(checkpoint, model, tuple(model.weights), advance)


def check_checkpoint(checkpoint: OpenCheckpoint, model: AbstractModel) -> None:
    """Whether the files hold what the model wants, and nothing else.

    Raises:
      CheckpointError: a tensor is missing, unexpected, of another shape or of a dtype that needs more than a cast.
    """
    stored = _plan(checkpoint, model)
    for name, spec in model.weights.items():
        _check_weight(stored[name], spec, checkpoint.home)


def read_weights(
    checkpoint: OpenCheckpoint,
    model: AbstractModel,
    names: Sequence[str],
    advance: Callable[[int], None] = lambda done_bytes: None,
) -> dict[str, jax.Array]:
    """Some weights of a checkpoint that was checked, in the order of `names`.

    Args:
      advance: is told the bytes of each weight that is done.
    """
    home = checkpoint.home
    stored = {name: checkpoint.stored(name, model) for name in names}
    # In file order, so that a cold disk reads forward.
    order = sorted(names, key=lambda name: _place(stored[name], home))
    weights: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="load") as pool:
        loaded = pool.map(lambda name: _load_one(stored[name], home, model.weights[name]), order)
        for name, array in zip(order, loaded, strict=True):
            weights[name] = array
            advance(model.weights[name].nbytes)
    return {name: weights[name] for name in names}


def stored_model(source: CheckpointSource, config: ModelConfig, placement: Placement) -> AbstractModel:
    """The abstract model of a checkpoint, with the linear layers quantized that are quantized in it.

    Raises:
      CheckpointError: a damaged file.
      UnsupportedModelError: a quantization that cannot be read.
      LayoutError: the layout does not fit the model, or splits a quantized group.
    """
    model = abstract_model(config, placement)
    if source.weight_format == "orbax" or not source.weight_files:
        return model
    with OpenCheckpoint(source, config) as checkpoint:
        quantization = checkpoint.quantization(model)
    return abstract_model(config, placement, quantization) if quantization else model


def _load_one(stored: StoredWeight, home: Mapping[str, TensorFile], spec: WeightSpec) -> jax.Array:
    dtype = np.dtype(spec.dtype)

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, spec.shape, strict=True))
        out = aligned_empty(shape, dtype)
        stored.read(home, index, out)
        return out.view(spec.stored_dtype)

    array = jax.make_array_from_callback(spec.shape, spec.sharding, read)
    # Transfers are asynchronous: without this the host buffers of many tensors would pile up.
    return array.block_until_ready()


def _plan(checkpoint: OpenCheckpoint, model: AbstractModel) -> dict[str, StoredWeight]:
    """Our weight name -> where it is stored; every tensor of the files is used, or known to be of no use."""
    source, home = checkpoint.source, checkpoint.home
    stored = {name: checkpoint.stored(name, model) for name in model.weights}
    used = {tensor for weight in stored.values() for tensor in weight.names}
    missing = [tensor for weight in stored.values() for tensor in weight.names if tensor not in home]
    if missing:
        remedy = "the checkpoint is incomplete or config.json is of another model"
        if missing == ["lm_head.weight"]:
            remedy = "config.json may lack tie_word_embeddings: true"
        raise CheckpointError(f"{_files(source)}: {_listing(dict.fromkeys(missing))} missing; {remedy}")
    unexpected = [tensor for tensor in home if tensor not in used and not checkpoint.is_ignorable(tensor)]
    if unexpected:
        path = home[unexpected[0]].path
        raise CheckpointError(
            f"{path}: {_listing(unexpected)} not part of the model that config.json describes; "
            "fix config.json (biases, number of layers, quantization) or serve a plain checkpoint"
        )
    return stored


def _check_weight(stored: StoredWeight, spec: WeightSpec, home: Mapping[str, TensorFile]) -> None:
    entries: dict[str, TensorEntry] = {name: home[name].entries[name] for name in stored.names}
    first = stored.names[0]
    try:
        shape = stored.shape(entries)
    except CheckpointError as error:
        raise CheckpointError(f"{home[first].path}: {error}") from None
    if shape != tuple(spec.shape):
        raise CheckpointError(
            f"{home[first].path}: tensor {first!r} has shape {list(entries[first].shape)}"
            f"{'' if shape == entries[first].shape else f', which gives {list(shape)}'}; expected {list(spec.shape)} "
            "by config.json. The weights and the config are of different models."
        )
    for name, entry in entries.items():
        if entry.dtype_name not in stored.dtypes:
            raise CheckpointError(
                f"{home[name].path}: tensor {name!r} is stored as {entry.dtype_name}; expected one of "
                f"{', '.join(stored.dtypes)}. It is quantized, but config.json has no quantization_config that "
                "says how; take the whole checkpoint, or the unquantized model."
            )


def _place(stored: StoredWeight, home: Mapping[str, TensorFile]) -> tuple[Path, int]:
    first = stored.names[0]
    return home[first].path, home[first].entries[first].begin


def _files(source: CheckpointSource) -> str:
    return str(source.weight_files[0] if len(source.weight_files) == 1 else source.path)


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more are" if len(names) > _LISTED else (" is" if len(names) == 1 else " are")
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(map(repr, names[:_LISTED])) + more
