"""ServedAdapter: one version of an adapter that requests and the engine share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ServedAdapter"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedAdapter:
    """An adapter that can be written into a slot. Loading again under the same name makes another version.

    Adapters are compared by identity. A request keeps the version it was sent to, so a version lives as long as one of
    its requests runs.

    Attributes:
      name: the name that callers use as `model`.
      version: a number from 1, unique among the adapters that this process has loaded. It salts cached results.
      rank: the largest rank of its layers.
      root: the path or source it came from, for people.
      base_model: the model it was trained on, according to its own config.
      created_s: the time it was loaded, in seconds since the epoch.
      values, scales: the arrays of each block (`ryzjax.lora.slot_plan.PackedAdapter`).
    """

    name: str
    version: int
    rank: int
    root: str
    base_model: str | None
    created_s: int
    values: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """The bytes on the host."""
        return sum(array.nbytes for array in (*self.values, *self.scales))
