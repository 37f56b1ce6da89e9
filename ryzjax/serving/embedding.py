"""What is left to do with a pooled vector: the length that was asked for, and the norm."""

from __future__ import annotations

import math

import numpy as np

from ryzjax.errors import RequestError

__all__ = ["check_embedding", "finish_embedding"]

_SMALLEST_NORM = 1e-12


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
