"""Loads a checkpoint's weights straight into their target dtype and sharding, several tensors at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ryzjax.checkpoint.buffers import aligned_empty
from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.gguf_file import GgufFile
from ryzjax.checkpoint.gguf_names import gguf_weight, is_ignorable_gguf, row_transforms
from ryzjax.checkpoint.orbax import load_converted
from ryzjax.checkpoint.progress import byte_progress
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored import StoredWeight
from ryzjax.checkpoint.tensor_file import TensorEntry, TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import family_of
from ryzjax.models.weight_spec import WeightSpec

__all__ = ["load_weights"]

_LISTED = 4
"""How many names a message lists before it says how many more there are."""
_MAX_THREADS = 8
"""Tensors read at once: enough to keep a disk's queue full, few enough for the host's memory."""


def load_weights(
    source: CheckpointSource,
    config: ModelConfig,
    wanted: Mapping[str, WeightSpec],
    *,
    show_progress: bool = False,
) -> dict[str, jax.Array]:
    """Reads every wanted weight of a checkpoint.

    Each device's part is copied (and cast) from the mapped file into a buffer of its own, so memory holds the model
    once, plus a tensor a thread at most where the device's memory is not the host's.

    Args:
      source: where the files are.
      config: of the model; says how its family stores weights.
      wanted: our weight name -> what the model wants. Tied models do not want `lm_head.weight`.
      show_progress: a bar on stderr.

    Returns:
      Our weight name -> array with the wanted shape, dtype and sharding, in the order of `wanted`.

    Raises:
      CheckpointError: a tensor is missing, unexpected, of another shape or of a dtype that needs more than a cast.
    """
    if source.weight_format == "orbax":
        return load_converted(source, wanted)
    if not source.weight_files:
        raise CheckpointError(f"{source.path}: no weight files were resolved; resolve it with load_format auto")
    with ExitStack() as stack:
        files = [stack.enter_context(closing(_open(source, path, config))) for path in source.weight_files]
        home = _locate(source, files)
        names = _gguf_names(config) if source.weight_format == "gguf" else _hf_names(config, home)
        stored = _plan(source, names, wanted, home)
        for name, spec in wanted.items():
            _check_weight(stored[name], spec, home)
        # In file order, so that a cold disk reads forward.
        order = sorted(wanted, key=lambda name: _place(stored[name], home))
        weights: dict[str, jax.Array] = {}
        total_bytes = sum(spec.nbytes for spec in wanted.values())
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        with (
            byte_progress("Loading weights", total_bytes, show=show_progress) as advance,
            ThreadPoolExecutor(threads, thread_name_prefix="load") as pool,
        ):
            loaded = pool.map(lambda name: _load_one(stored[name], home, wanted[name]), order)
            for name, array in zip(order, loaded, strict=True):
                weights[name] = array
                advance(wanted[name].nbytes)
    return {name: weights[name] for name in wanted}


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


@dataclass(frozen=True, kw_only=True)
class _Names:
    """How a format names weights: where each of ours is, and which tensors are of no use."""

    weight: Callable[[str, frozenset[str]], StoredWeight]
    is_ignorable: Callable[[str], bool]


def _hf_names(config: ModelConfig, home: Mapping[str, TensorFile]) -> _Names:
    family = HF_FAMILIES[family_of(config)]
    # The usual prefix where none fits, so that errors name it.
    fits = (prefix for prefix in family.prefixes if f"{prefix}embed_tokens.weight" in home)
    prefix = next(fits, family.prefixes[0])

    def is_ignorable(tensor: str) -> bool:
        # Old exports store RoPE's inverse frequencies, which follow from the config, and some store the head even
        # where it is tied to the embedding. Multimodal models have parts that see and hear.
        is_head = config.tie_embeddings and tensor.endswith("lm_head.weight")
        return is_head or tensor.endswith(".rotary_emb.inv_freq") or tensor.startswith(family.ignored)

    return _Names(
        weight=lambda name, available: family.weight(name, config, prefix, available), is_ignorable=is_ignorable
    )


def _gguf_names(config: ModelConfig) -> _Names:
    family = family_of(config)
    return _Names(
        weight=lambda name, available: gguf_weight(name, family, config, available), is_ignorable=is_ignorable_gguf
    )


def _open(source: CheckpointSource, path: Path, config: ModelConfig) -> TensorFile:
    if source.weight_format == "safetensors":
        return SafetensorsFile(path)
    file = GgufFile(path)
    file.transforms = row_transforms(family_of(config), file.entries, config)
    return file


def _plan(
    source: CheckpointSource, names: _Names, wanted: Mapping[str, WeightSpec], home: Mapping[str, TensorFile]
) -> dict[str, StoredWeight]:
    """Our weight name -> where it is stored; every tensor of the files is used, or known to be of no use."""
    available = frozenset(home)
    stored = {name: names.weight(name, available) for name in wanted}
    used = {tensor for weight in stored.values() for tensor in weight.names}
    missing = [tensor for weight in stored.values() for tensor in weight.names if tensor not in home]
    if missing:
        remedy = "the checkpoint is incomplete or config.json is of another model"
        if missing == ["lm_head.weight"]:
            remedy = "config.json may lack tie_word_embeddings: true"
        raise CheckpointError(f"{_files(source)}: {_listing(dict.fromkeys(missing))} missing; {remedy}")
    unexpected = [tensor for tensor in home if tensor not in used and not names.is_ignorable(tensor)]
    if unexpected:
        path = home[unexpected[0]].path
        raise CheckpointError(
            f"{path}: {_listing(unexpected)} not part of the model that config.json describes; "
            "fix config.json (biases, number of layers, quantization) or serve a plain checkpoint"
        )
    return stored


def _locate(source: CheckpointSource, files: Iterable[TensorFile]) -> dict[str, TensorFile]:
    """Tensor name -> the file that holds it, checked against the index where there is one."""
    home: dict[str, TensorFile] = {}
    for file in files:
        for tensor in file.entries:
            if tensor in home:
                raise CheckpointError(
                    f"{file.path}: tensor {tensor!r} is in {home[tensor].path.name} too; remove one of the two files"
                )
            home[tensor] = file
    for tensor, path in (source.weight_map or {}).items():
        if tensor not in home or home[tensor].path != path:
            where = f"it is in {home[tensor].path.name}" if tensor in home else "it is in no file"
            raise CheckpointError(
                f"{path}: tensor {tensor!r} should be here by the index, but {where}; download the files again"
            )
    return home


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
                f"{', '.join(stored.dtypes)}. Quantized checkpoints cannot be loaded as plain weights; take the "
                "unquantized model."
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
