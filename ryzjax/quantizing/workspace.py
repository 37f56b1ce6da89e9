"""Workspace: the progress of an unfinished quantizing run, saved so that a killed run can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ryzjax.bits import storage_dtype
from ryzjax.quantizing.hidden_states import HiddenStates

__all__ = ["Workspace"]


class Workspace:
    """The state of an unfinished run, in the folder of its shards: hidden states at the next block, and reports.

    Args:
      folder: The folder of the run; it must exist.
      key: A hash of everything that determines the result. The state of a run with another key is ignored.
    """

    def __init__(self, folder: Path, key: str):
        self.folder = folder
        self.key = key
        self._state = folder / "progress.json"

    def load(self) -> dict[str, object] | None:
        """Returns the state that `save` wrote last; None if there is none, or if it belongs to another run."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) and state.get("key") == self.key else None

    def save(self, state: Mapping[str, object], states: Mapping[str, HiddenStates], layer: int) -> None:
        """Records that all blocks before `layer` are done.

        Args:
          state: What to save beside the hidden states, as JSON values.
          states: Name -> hidden states at the entry of block `layer`.
          layer: Index of the next block.
        """
        for name, entry in states.items():
            path = self._states(name, layer)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, entry.hidden.view(storage_dtype(entry.hidden.dtype)), allow_pickle=False)
            partial.replace(path)
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"key": self.key, "layer": layer, **state}), encoding="utf-8")
        partial.replace(self._state)
        for name in states:
            self._states(name, layer - 1).unlink(missing_ok=True)

    def hidden_states(self, name: str, layer: int, dtype: str) -> HiddenStates:
        """Reads the hidden states of a name at the entry of block `layer`, in the model's dtype."""
        return HiddenStates(hidden=np.load(self._states(name, layer), allow_pickle=False).view(jnp.dtype(dtype)))

    def clear(self) -> None:
        """Removes the files that only an unfinished run needs."""
        for path in (*self.folder.glob("states-*"), *self.folder.glob("*.partial"), self._state):
            path.unlink(missing_ok=True)

    def _states(self, name: str, layer: int) -> Path:
        return self.folder / f"states-{name}-{layer:05d}.npy"
