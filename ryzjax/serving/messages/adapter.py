"""ServedAdapter: one version of an adapter, as requests and the engine hold on to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ServedAdapter"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedAdapter:
    """An adapter that may be put into a slot; another load under its name is another version.

    Compared by identity. Requests keep the version they were sent to, so it lives for as long as one runs.

    Attributes:
      name: what callers give as `model`.
      version: unique among all that this process has loaded, from 1; salts whatever is cached of its results.
      rank: its largest r.
      root: where it came from, for people.
      base_model: what it was trained on, as it says itself.
      created_s: when it was loaded, seconds since the epoch.
      values, scales: of each block (`ryzjax.lora.slot_plan.PackedAdapter`).
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
        """Bytes on the host."""
        return sum(array.nbytes for array in (*self.values, *self.scales))
