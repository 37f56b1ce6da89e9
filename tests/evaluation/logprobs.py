"""Log-probabilities in float64, from a model's logits outside the engine."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ryzjax.evaluation import Forward, Head
from ryzjax.models.registry import AbstractModel


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def token_logprobs(model: AbstractModel, leaves: tuple[jax.Array, ...], tokens: Sequence[int]) -> np.ndarray:
    """[T - 1, V]: what the model expects after each token but the last, given all before."""
    forward = Forward(model, leaves, max_tokens=len(tokens))
    return log_softmax(np.asarray(Head(model, leaves).logits(forward.hidden(tokens))))[:-1]
