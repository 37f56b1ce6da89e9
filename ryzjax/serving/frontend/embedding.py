"""An embedding on the caller's side: its vector out of the engine's events, cut to the length asked for, and normed."""

from __future__ import annotations

import math

import numpy as np

from ryzjax.errors import EngineStoppedError, RequestError
from ryzjax.serving.messages.request import TokenEvent

__all__ = ["VectorCollector", "check_embedding", "finish_embedding"]

_SMALLEST_NORM = 1e-12


class VectorCollector:
    """Takes the vector out of the events of one sequence.

    Attributes:
      is_finished: whether the last event has come.
    """

    def __init__(self) -> None:
        self.is_finished = False
        self._vector: np.ndarray | None = None

    def push(self, event: TokenEvent) -> None:
        """Takes in the next event.

        Raises:
          Exception: the event is an error's.
        """
        if event.finish_reason == "error":
            raise event.error or EngineStoppedError("the engine failed")
        if event.vector is not None:
            self._vector = event.vector
        self.is_finished = event.finish_reason is not None

    @property
    def vector(self) -> np.ndarray:
        """float32 [E], once finished."""
        assert self._vector is not None, "the engine pools before it ends the sequence"
        return self._vector


def check_embedding(*, pooling: str | None, dimensions: int | None, hidden_size: int) -> None:
    """Raises RequestError for an unknown pooling (None leaves it to the engine), or more dimensions than there are."""
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
    """A pooled vector, float32 [E], as the caller wants it.

    Args:
      dimensions: how many of its leading numbers are kept (for models trained so: Kusupati et al., Matryoshka
        Representation Learning, arXiv 2205.13147); None keeps all.
      normalize: scale what is kept to length 1.

    Returns:
      float32 [dimensions or E], a copy.
    """
    kept = vector[:dimensions].astype(np.float64)
    # After the cut: a part of a unit vector is none.
    if normalize:
        kept /= max(math.sqrt(np.sum(np.square(kept))), _SMALLEST_NORM)
    return kept.astype(np.float32)
