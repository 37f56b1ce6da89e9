"""Embeddings on the caller's side: collects the vector from the engine's events, shortens it, and normalizes it."""

from __future__ import annotations

import math

import numpy as np

from ryzjax.errors import EngineStoppedError, RequestError
from ryzjax.serving.messages.request import TokenEvent

__all__ = ["VectorCollector", "check_embedding", "finish_embedding"]

_SMALLEST_NORM = 1e-12


class VectorCollector:
    """Collects the vector from the events of one sequence.

    Attributes:
      is_finished: Whether the last event has arrived.
    """

    def __init__(self) -> None:
        self.is_finished = False
        self._vector: np.ndarray | None = None

    def push(self, event: TokenEvent) -> None:
        """Adds the next event.

        Raises:
          Exception: The event reports an error.
        """
        if event.finish_reason == "error":
            raise event.error or EngineStoppedError("the engine failed")
        if event.vector is not None:
            self._vector = event.vector
        self.is_finished = event.finish_reason is not None

    @property
    def vector(self) -> np.ndarray:
        """The vector, float32 [E]. Available once finished."""
        assert self._vector is not None, "the engine pools before it ends the sequence"
        return self._vector


def check_embedding(*, pooling: str | None, dimensions: int | None, hidden_size: int) -> None:
    """Raises RequestError for an unknown pooling or more dimensions than the hidden size. None means the default."""
    if pooling not in (None, "last", "mean"):
        raise RequestError(f"pooling={pooling!r} is not known; expected 'last' or 'mean'", param="pooling")
    is_int = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (is_int and 1 <= dimensions <= hidden_size):
        raise RequestError(
            f"dimensions={dimensions!r} is out of range; expected an integer from 1 to {hidden_size}, the model's "
            "hidden size",
            param="dimensions",
        )


def finish_embedding(vector: np.ndarray, *, dimensions: int | None, normalize: bool) -> np.ndarray:
    """Shortens and normalizes a pooled vector.

    Args:
      vector: The pooled vector, float32 [E].
      dimensions: The number of leading elements to keep, for models that were trained for it (Kusupati et al.,
        Matryoshka Representation Learning, arXiv 2205.13147); None keeps all.
      normalize: Whether to scale the kept elements to length 1.

    Returns:
      float32 [dimensions or E], a copy.
    """
    kept = vector[:dimensions].astype(np.float64)
    # This follows the cut, because a part of a unit vector is not a unit vector.
    if normalize:
        kept /= max(math.sqrt(np.sum(np.square(kept))), _SMALLEST_NORM)
    return kept.astype(np.float32)
