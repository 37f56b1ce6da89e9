"""Shards: writes the files of a quantized checkpoint, one shard per block. Unchanged tensors are copied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.checkpoint.quantized.stored_matrix import read_tensor
from ryzjax.checkpoint.safetensors_write import TensorToWrite, write_safetensors
from ryzjax.checkpoint.stored_weight import TensorRows, WholeTensors
from ryzjax.errors import ConfigError
from ryzjax.models.abstract import AbstractModel

__all__ = ["Shards"]

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class Shards:
    """Writes the shards of one quantized checkpoint.

    Args:
      folder: The folder to write to; it must exist.
      checkpoint: The plain checkpoint. Tensors that are not replaced are copied from it.
      model: Its abstract model, plain.
    """

    def __init__(self, folder: Path, checkpoint: OpenCheckpoint, model: AbstractModel):
        self.folder = folder
        self.checkpoint = checkpoint
        self.model = model
        self.count = model.config.num_layers + 1

    def module(self, linear: str) -> str:
        """Returns the name in the files of the module that holds a linear layer, alone or fused with others.

        Raises:
          ConfigError: The layer is stored in a layout that cannot be written.
        """
        stored = self.checkpoint.stored(f"{linear}.weight", self.model)
        if isinstance(stored, WholeTensors) and not stored.is_stack:
            return stored.names[0].removesuffix(".weight")
        if isinstance(stored, TensorRows) and not stored.is_transposed and stored.rows.step in (None, 1):
            return stored.name.removesuffix(".weight")
        raise ConfigError(f"{linear} is stored as a part of {stored.names[0]!r}, which cannot be written quantized")

    def write(self, layer: int, encoded: Mapping[str, EncodedMatrix], changed: Mapping[str, np.ndarray]) -> None:
        """Writes the shard of a block, or of the weights outside all blocks.

        Args:
          layer: Index of the block; the number of blocks for the weights outside them.
          encoded: Linear layer -> its quantized matrix. A fused module needs all of its parts, or none.
          changed: Weight name -> its new values, for norms and biases that took AWQ's scales.
        """
        replaced: dict[str, np.ndarray] = {}
        gone: set[str] = set()
        for module, parts in self._by_module(encoded).items():
            gone.add(f"{module}.weight")
            tensors = [part.tensors() for part in parts]
            for ending in tensors[0]:
                if ending == "weight_shape":
                    rows = sum(int(t[ending][0]) for t in tensors)
                    value = np.array([rows, tensors[0][ending][1]], np.int64)
                else:
                    value = np.concatenate([t[ending] for t in tensors]) if len(tensors) > 1 else tensors[0][ending]
                replaced[f"{module}.{ending}"] = value
        for name, value in changed.items():
            stored = self.checkpoint.stored(name, self.model)
            assert isinstance(stored, WholeTensors), name
            entry = self.checkpoint.file_of[stored.names[0]].entries[stored.names[0]]
            replaced[stored.names[0]] = value.astype(entry.dtype)
        file_of = self.checkpoint.file_of
        out = {
            tensor: TensorToWrite(
                dtype=file_of[tensor].entries[tensor].dtype,
                shape=file_of[tensor].entries[tensor].shape,
                get=partial(read_tensor, file_of, tensor),
            )
            for tensor in file_of
            if self._layer(tensor) == layer and tensor not in gone and tensor not in replaced
        }
        out |= {tensor: TensorToWrite.of(value) for tensor, value in replaced.items()}
        write_safetensors(self.folder / self._file(layer), out)

    def write_index(self) -> None:
        """Writes the index of all shards, once all of them are written."""
        from ryzjax.checkpoint.safetensors import SafetensorsFile

        weight_map: dict[str, str] = {}
        total = 0
        for layer in range(self.count):
            with SafetensorsFile(self.folder / self._file(layer)) as file:
                for name, entry in file.entries.items():
                    weight_map[name] = file.path.name
                    total += entry.end - entry.begin
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _by_module(self, encoded: Mapping[str, EncodedMatrix]) -> dict[str, list[EncodedMatrix]]:
        """Returns module -> its parts, in the order of their rows."""
        parts: dict[str, list[tuple[int, EncodedMatrix]]] = {}
        for linear, matrix in encoded.items():
            stored = self.checkpoint.stored(f"{linear}.weight", self.model)
            first = stored.rows.start or 0 if isinstance(stored, TensorRows) else 0
            parts.setdefault(self.module(linear), []).append((first, matrix))
        return {module: [matrix for _, matrix in sorted(found, key=lambda p: p[0])] for module, found in parts.items()}

    def _layer(self, tensor: str) -> int:
        match = _LAYER.search(tensor)
        return int(match[1]) if match else self.count - 1

    def _file(self, layer: int) -> str:
        return f"model-{layer + 1:05d}-of-{self.count:05d}.safetensors"
