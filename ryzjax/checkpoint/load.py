"""Loads safetensors weights straight into their target dtype and sharding, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np

from ryzjax.checkpoint.buffers import aligned_empty
from ryzjax.checkpoint.names import hf_weight_name, is_ignorable_weight
from ryzjax.checkpoint.progress import byte_progress
from ryzjax.checkpoint.safetensors import SafetensorsFile, TensorEntry
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.errors import CheckpointError
from ryzjax.models.weight_spec import WeightSpec

__all__ = ["load_weights"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 4
"""How many names a message lists before it says how many more there are."""


def load_weights(
    source: CheckpointSource,
    wanted: Mapping[str, WeightSpec],
    *,
    family: str = "llama",
    show_progress: bool = False,
) -> dict[str, jax.Array]:
    """Reads every wanted weight of a checkpoint.

    Each device's part is copied (and cast) from the mapped file into a buffer of its own, so memory holds the model
    once, plus one tensor at most.

    Args:
      source: where the files are.
      wanted: our weight name -> what the model wants. Tied models do not want `lm_head.weight`.
      family: whose names the files use, a key of `names`.
      show_progress: a bar on stderr.

    Returns:
      Our weight name -> array with the wanted shape, dtype and sharding, in the order of `wanted`.

    Raises:
      CheckpointError: a tensor is missing, unexpected, of another shape or of a dtype that needs more than a cast.
    """
    if not source.weight_files:
        raise CheckpointError(f"{source.path}: no safetensors files were resolved; resolve it with load_format auto")
    ours = {hf_weight_name(name, family=family): name for name in wanted}
    with ExitStack() as stack:
        files = [stack.enter_context(SafetensorsFile(path)) for path in source.weight_files]
        home = _locate(source, files)
        _check_names(source, ours, home)
        for hf_name, name in ours.items():
            _check_tensor(home[hf_name].path, home[hf_name].entries[hf_name], wanted[name])

        weights: dict[str, jax.Array] = {}
        # In file order, so that a cold disk reads forward.
        order = sorted(ours, key=lambda hf_name: (home[hf_name].path, home[hf_name].entries[hf_name].begin))
        total_bytes = sum(wanted[name].nbytes for name in ours.values())
        with byte_progress("Loading weights", total_bytes, show=show_progress) as advance:
            for hf_name in order:
                spec = wanted[ours[hf_name]]
                weights[ours[hf_name]] = _load_one(home[hf_name], hf_name, spec)
                advance(spec.nbytes)
    return {name: weights[name] for name in wanted}


def _load_one(file: SafetensorsFile, hf_name: str, spec: WeightSpec) -> jax.Array:
    dtype = np.dtype(spec.dtype)

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, spec.shape, strict=True))
        out = aligned_empty(shape, dtype)
        file.read(hf_name, index, out)
        return out

    array = jax.make_array_from_callback(spec.shape, spec.sharding, read)
    # Transfers are asynchronous: without this the host buffers of many tensors would pile up.
    return array.block_until_ready()


def _locate(source: CheckpointSource, files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    """Tensor name -> the file that holds it, checked against the index where there is one."""
    home: dict[str, SafetensorsFile] = {}
    for file in files:
        for hf_name in file.entries:
            if hf_name in home:
                raise CheckpointError(
                    f"{file.path}: tensor {hf_name!r} is in {home[hf_name].path.name} too; remove one of the two files"
                )
            home[hf_name] = file
    for hf_name, path in (source.weight_map or {}).items():
        if hf_name not in home or home[hf_name].path != path:
            where = f"it is in {home[hf_name].path.name}" if hf_name in home else "it is in no file"
            raise CheckpointError(
                f"{path}: tensor {hf_name!r} should be here by the index, but {where}; download the files again"
            )
    return home


def _check_names(source: CheckpointSource, ours: Mapping[str, str], home: Mapping[str, SafetensorsFile]) -> None:
    missing = [hf_name for hf_name in ours if hf_name not in home]
    if missing:
        remedy = "the checkpoint is incomplete or config.json is of another model"
        if missing == ["lm_head.weight"]:
            remedy = "config.json may lack tie_word_embeddings: true"
        raise CheckpointError(f"{_files(source)}: {_listing(missing)} missing; {remedy}")
    is_tied = "lm_head.weight" not in ours
    unexpected = [name for name in home if name not in ours and not is_ignorable_weight(name, is_tied=is_tied)]
    if unexpected:
        path = home[unexpected[0]].path
        raise CheckpointError(
            f"{path}: {_listing(unexpected)} not part of the model that config.json describes; "
            "fix config.json (biases, number of layers, quantization) or serve a plain checkpoint"
        )


def _check_tensor(path: Path, entry: TensorEntry, spec: WeightSpec) -> None:
    if entry.shape != tuple(spec.shape):
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} has shape {list(entry.shape)}; expected {list(spec.shape)} by config.json. "
            "The weights and the config are of different models."
        )
    if entry.dtype_name not in _FLOATS:
        raise CheckpointError(
            f"{path}: tensor {entry.name!r} is stored as {entry.dtype_name}; expected one of {', '.join(_FLOATS)}. "
            "Quantized checkpoints cannot be loaded as plain weights; take the unquantized model."
        )


def _files(source: CheckpointSource) -> str:
    return str(source.weight_files[0] if len(source.weight_files) == 1 else source.path)


def _listing(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more are" if len(names) > _LISTED else (" is" if len(names) == 1 else " are")
    return ("tensor " if len(names) == 1 else "tensors ") + ", ".join(map(repr, names[:_LISTED])) + more
