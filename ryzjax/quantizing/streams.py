"""Hidden states of the calibration text on their way through the blocks, and the folder they survive a kill in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.bits import storage_dtype
from ryzjax.models.registry import AbstractModel
from ryzjax.quantizing.blocks import BlockRunner, InputSums

__all__ = ["Pair", "Stream", "Workspace", "embed_sequences"]

_BATCH_TOKENS = 2048
"""Tokens that go through a block at a time: enough for full matmuls, few enough to bound temporaries."""


@dataclass(kw_only=True)
class Stream:
    """Hidden states [S, T, E] of some sequences at the entry of a block, on the host."""

    hidden: np.ndarray

    def advance(self, runner: BlockRunner, layer: int, weights: Mapping[str, jax.Array]) -> None:
        """Takes the states through a block."""
        for part in batches(self.hidden):
            self.hidden[part] = runner.advance(layer, weights, jnp.asarray(self.hidden[part]))


@dataclass(kw_only=True)
class Pair:
    """The same sequences in the model that is being quantized and in the plain one."""

    quantized: Stream
    plain: Stream

    def observe(
        self,
        runner: BlockRunner,
        layer: int,
        linear: str,
        weights: Mapping[str, jax.Array],
        plain_weights: Mapping[str, jax.Array],
        *,
        with_drift: bool,
    ) -> InputSums:
        """Means over all tokens of what a linear layer of a block is given; see `BlockRunner.observe`."""
        total: InputSums | None = None
        for part in batches(self.plain.hidden):
            sums = runner.observe(
                layer,
                linear,
                weights=weights,
                hidden=jnp.asarray(self.quantized.hidden[part]),
                plain_weights=plain_weights,
                plain_hidden=jnp.asarray(self.plain.hidden[part]),
                with_drift=with_drift,
            )
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        assert total is not None
        count = self.plain.hidden.shape[0] * self.plain.hidden.shape[1]
        return jax.tree.map(lambda sum_: sum_ / count, total)


def batches(hidden: np.ndarray) -> Iterator[slice]:
    """Sequences that go through a block together."""
    sequences, tokens, _ = hidden.shape
    rows = max(1, min(sequences, _BATCH_TOKENS // tokens))
    for first in range(0, sequences, rows):
        yield slice(first, min(first + rows, sequences))


def embed_sequences(model: AbstractModel, weights: Mapping[str, jax.Array], tokens: np.ndarray) -> Stream:
    """The states [S, T, E] at the entry of block 0.

    Args:
      weights: at least the embedding.
      tokens: int32 [S, T].
    """

    @jax.jit
    def embed(table: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
        return model.merge_some(table).embed_tokens(ids)

    table = {name: weights[name] for name in weights if name.startswith("embed.")}
    states = [np.asarray(embed(table, jnp.asarray(row))) for row in tokens]
    return Stream(hidden=np.stack(states))


class Workspace:
    """The folder of an unfinished run: shards that are done, the states at the entry of the next block, reports.

    Args:
      folder: made if it is not there.
      key: of what is being done; another run's folder is not gone on with.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        self.key = key
        self._state = folder / "progress.json"

    def load(self) -> dict[str, object] | None:
        """What `save` was given last; None at the beginning, or where it was of another run."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None

    def save(self, state: Mapping[str, object], streams: Mapping[str, Stream], layer: int) -> None:
        """Records that everything before block `layer` is done."""
        for name, stream in streams.items():
            path = self._states(name, layer)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, stream.hidden.view(storage_dtype(stream.hidden.dtype)), allow_pickle=False)
            partial.replace(path)
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"key": self.key, "layer": layer, **state}), encoding="utf-8")
        partial.replace(self._state)
        for name in streams:
            self._states(name, layer - 1).unlink(missing_ok=True)

    def stream(self, name: str, layer: int, dtype: str) -> Stream:
        """The states as they were saved."""
        return Stream(hidden=np.load(self._states(name, layer), allow_pickle=False).view(jnp.dtype(dtype)))

    def clear(self) -> None:
        """Removes what only an unfinished run needs."""
        for path in (*self.folder.glob("states-*"), *self.folder.glob("*.partial"), self._state):
            path.unlink(missing_ok=True)

    def _states(self, name: str, layer: int) -> Path:
        return self.folder / f"states-{name}-{layer:05d}.npy"
