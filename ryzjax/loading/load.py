"""Loads a checkpoint's weights straight into their target dtype and sharding, several tensors at a time.

`load_weights` loads a whole model, and `weight_reader` opens one to read single weights or rows. `check_checkpoint` and
`read_weights` are their parts, for callers that need the `OpenCheckpoint` too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored_weight import StoredWeight
from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.loading.buffers import aligned_empty
from ryzjax.loading.orbax import load_converted
from ryzjax.loading.progress import byte_progress
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding import Placement

__all__ = ["WeightReader", "check_checkpoint", "load_weights", "read_weights", "stored_model", "weight_reader"]

_LISTED = 4
"""Tensor names that an error message lists before it gives the number of the others."""
_MAX_THREADS = 8
"""Tensors read at the same time: enough to keep a disk's queue full, few enough for the host's memory."""


def load_weights(
    source: CheckpointSource, model: AbstractModel, *, show_progress: bool = False
) -> dict[str, jax.Array]:
    """Reads every weight of a model.

    Each device's shard is copied and cast from the mapped file into its own buffer. Memory therefore holds the model
    once, and on an accelerator also one tensor per thread on the host.

    Args:
      source: The checkpoint's files.
      model: The abstract model to fill. A layer that is quantized in the checkpoint and plain in the model is
        dequantized. A model with tied embeddings has no `lm_head.weight`.
      show_progress: Whether to show a progress bar on stderr.

    Returns:
      Our weight name -> array with the model's shape, dtype and sharding, in the order of `model.weights`.

    Raises:
      CheckpointError: A tensor is missing, unexpected, of another shape, or of a dtype that a cast cannot convert.
    """
    if source.weight_format == "orbax":
        return load_converted(source, model.weights)
    with OpenCheckpoint(source, model.config) as checkpoint:
        check_checkpoint(checkpoint, model)
        total_bytes = sum(spec.nbytes for spec in model.weights.values())
        with byte_progress("Loading weights", total_bytes, show=show_progress) as advance:
            return read_weights(checkpoint, model, tuple(model.weights), advance)


@dataclass(frozen=True, kw_only=True)
class WeightReader:
    """Reads single weights of an open checkpoint. All functions may be called from several threads.

    Attributes:
      names: Our weight names in the order of the files, so that a cold disk reads sequentially.
      weight: Returns the weight of a name, with the model's shape, dtype and sharding.
      rows: Copies a slice of a weight's rows into a host array, whose dtype is that of the weight.
    """

    names: tuple[str, ...]
    weight: Callable[[str], jax.Array]
    rows: Callable[[str, slice, np.ndarray], None]


@contextmanager
def weight_reader(source: CheckpointSource, model: AbstractModel) -> Iterator[WeightReader]:
    """Opens a checkpoint to read single weights. A converted model is read whole.

    Args:
      source: The checkpoint's files.
      model: The abstract model that the weights belong to, as in `load_weights`.

    Yields:
      The reader, which is usable until the context ends.

    Raises:
      CheckpointError: A tensor is missing, unexpected, of another shape, or of a dtype that a cast cannot convert.
    """
    if source.weight_format == "orbax":
        weights = load_converted(source, model.weights)

        def copy_rows(name: str, rows: slice, out: np.ndarray) -> None:
            out[...] = np.asarray(weights[name][rows])

        yield WeightReader(names=tuple(model.weights), weight=weights.__getitem__, rows=copy_rows)
        return
    with OpenCheckpoint(source, model.config) as checkpoint:
        check_checkpoint(checkpoint, model)
        file_of = checkpoint.file_of
        stored = {name: checkpoint.stored(name, model) for name in model.weights}

        def read_rows(name: str, rows: slice, out: np.ndarray) -> None:
            others = (slice(None),) * (len(model.weights[name].shape) - 1)
            stored[name].read(file_of, (rows, *others), out)

        yield WeightReader(
            names=tuple(sorted(stored, key=lambda name: _place(stored[name], file_of))),
            weight=lambda name: _load_one(stored[name], file_of, model.weights[name]),
            rows=read_rows,
        )


def check_checkpoint(checkpoint: OpenCheckpoint, model: AbstractModel) -> None:
    """Checks that the files hold every tensor of the model, and no other.

    Raises:
      CheckpointError: A tensor is missing, unexpected, of another shape, or of a dtype that a cast cannot convert.
    """
    stored = _plan(checkpoint, model)
    for name, spec in model.weights.items():
        _check_weight(stored[name], spec, checkpoint.file_of)


def read_weights(
    checkpoint: OpenCheckpoint,
    model: AbstractModel,
    names: Sequence[str],
    advance: Callable[[int], None] = lambda done_bytes: None,
) -> dict[str, jax.Array]:
    """Reads some weights of a checkpoint that `check_checkpoint` accepted.

    Args:
      checkpoint: The open files.
      model: The abstract model that the weights belong to.
      names: Our weight names.
      advance: Called with the bytes of each weight once it is loaded.

    Returns:
      Weight name -> array, in the order of `names`.
    """
    file_of = checkpoint.file_of
    stored = {name: checkpoint.stored(name, model) for name in names}
    # In file order, so that a cold disk reads sequentially.
    order = sorted(names, key=lambda name: _place(stored[name], file_of))
    weights: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="load") as pool:
        loaded = pool.map(lambda name: _load_one(stored[name], file_of, model.weights[name]), order)
        for name, array in zip(order, loaded, strict=True):
            weights[name] = array
            advance(model.weights[name].nbytes)
    return {name: weights[name] for name in names}


def stored_model(source: CheckpointSource, config: ModelConfig, placement: Placement) -> AbstractModel:
    """Builds the abstract model of a checkpoint. Linear layers that are quantized in the files stay quantized.

    Raises:
      CheckpointError: A file is damaged.
      UnsupportedModelError: The checkpoint's quantization is not supported.
      LayoutError: The layout does not fit the model, or splits a quantized group.
    """
    model = abstract_model(config, placement)
    if source.weight_format == "orbax" or not source.weight_files:
        return model
    with OpenCheckpoint(source, config) as checkpoint:
        quantization = checkpoint.quantization(model)
    return abstract_model(config, placement, quantization) if quantization else model


def _load_one(stored: StoredWeight, file_of: Mapping[str, TensorFile], spec: WeightSpec) -> jax.Array:
    dtype = np.dtype(spec.dtype)

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, spec.shape, strict=True))
        out = aligned_empty(shape, dtype)
        stored.read(file_of, index, out)
        return out.view(spec.stored_dtype)

    array = jax.make_array_from_callback(spec.shape, spec.sharding, read)
    # Transfers are asynchronous. Without waiting, the host buffers of many tensors would pile up.
    return array.block_until_ready()


def _plan(checkpoint: OpenCheckpoint, model: AbstractModel) -> dict[str, StoredWeight]:
    """Maps our weight names to where they are stored. Refuses files with tensors that are not used or ignorable."""
    source, file_of = checkpoint.source, checkpoint.file_of
    stored = {name: checkpoint.stored(name, model) for name in model.weights}
    used = {tensor for weight in stored.values() for tensor in weight.names}
    missing = [tensor for weight in stored.values() for tensor in weight.names if tensor not in file_of]
    if missing:
        remedy = "the checkpoint is incomplete, or config.json belongs to another model"
        if missing == ["lm_head.weight"]:
            remedy = "config.json may lack tie_word_embeddings: true"
        raise CheckpointError(f"{_files(source)}: {_listing(dict.fromkeys(missing))} missing; {remedy}")
    unexpected = [tensor for tensor in file_of if tensor not in used and not checkpoint.is_ignorable(tensor)]
    if unexpected:
        path = file_of[unexpected[0]].path
        raise CheckpointError(
            f"{path}: {_listing(unexpected)} not part of the model that config.json describes; "
            "fix config.json (biases, number of layers, quantization) or serve a plain checkpoint"
        )
    return stored


def _check_weight(stored: StoredWeight, spec: WeightSpec, file_of: Mapping[str, TensorFile]) -> None:
    entries: dict[str, TensorEntry] = {name: file_of[name].entries[name] for name in stored.names}
    first = stored.names[0]
    try:
        shape = stored.shape(entries)
    except CheckpointError as error:
        raise CheckpointError(f"{file_of[first].path}: {error}") from None
    if shape != tuple(spec.shape):
        raise CheckpointError(
            f"{file_of[first].path}: tensor {first!r} has shape {list(entries[first].shape)}"
            f"{'' if shape == entries[first].shape else f', which gives {list(shape)}'}; expected {list(spec.shape)} "
            "by config.json. The weights and the config belong to different models."
        )
    for name, entry in entries.items():
        if entry.dtype_name not in stored.dtypes:
            raise CheckpointError(
                f"{file_of[name].path}: tensor {name!r} is stored as {entry.dtype_name}; expected one of "
                f"{', '.join(stored.dtypes)}. It is quantized, but config.json has no quantization_config that "
                "describes how; download the whole checkpoint, or use the unquantized model."
            )


def _place(stored: StoredWeight, file_of: Mapping[str, TensorFile]) -> tuple[Path, int]:
    first = stored.names[0]
    return file_of[first].path, file_of[first].entries[first].begin


def _files(source: CheckpointSource) -> str:
    return str(source.weight_files[0] if len(source.weight_files) == 1 else source.path)


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more are" if len(names) > _LISTED else (" is" if len(names) == 1 else " are")
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(map(repr, names[:_LISTED])) + more
