"""Log-probabilities in float64, from a model's logits outside the engine."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ryzjax.evaluation import Forward, Head
from ryzjax.models.abstract import AbstractModel


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Oracle:
    """A model asked one sequence after another, each from its beginning."""

    def __init__(self, model: AbstractModel, leaves: tuple[jax.Array, ...], *, max_tokens: int):
        self._forward = Forward(model, leaves, max_tokens=max_tokens)
        self._head = Head(model, leaves)
        self._max_tokens = max_tokens

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """[T - 1, V]: what the model expects after each token but the last, given all before."""
        hidden = np.concatenate([np.asarray(chunk) for chunk in self._forward.chunks(tokens)])
        # One shape, one compile.
        padded = np.zeros((self._max_tokens, hidden.shape[1]), hidden.dtype)
        padded[: len(tokens)] = hidden
        return log_softmax(np.asarray(self._head.logits(padded)))[: len(tokens) - 1]
