"""Preference pairs in a batch: their number, and the log probability of each answer.

A pair is two consecutive rows: the chosen answer in row 2i, the rejected one in row 2i + 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen
from ryzjax.training.objectives.losses import token_log_probs
from ryzjax.training.objectives.objective import Params, Trained
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["count_pairs", "real_pairs", "row_log_probs"]


def row_log_probs(
    model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None, chunk: int
) -> Float[Array, " rows"]:
    """Returns the sum of log p over the tokens of each row that count."""
    hidden = model.hidden(params, frozen, batch.segments, key)  # pyright: ignore[reportArgumentType]
    logp = token_log_probs(
        model.logits,
        model.head_params(params),  # pyright: ignore[reportArgumentType]
        frozen,
        hidden,
        batch.targets.reshape(-1),
        chunk_tokens=chunk,
    ).reshape(batch.targets.shape)
    return jnp.sum(jnp.where(batch.loss_weights > 0, logp, 0.0), axis=1)


def real_pairs(batch: StepBatch) -> Float[Array, " pairs"]:
    """Returns 1.0 for each pair, and 0.0 for pairs that only pad the batch."""
    return (jnp.sum(batch.loss_weights[0::2], axis=1) > 0).astype(jnp.float32)


def count_pairs(batch: StepBatch) -> Float[Array, ""]:
    """Returns the number of real pairs in a batch."""
    return jnp.sum(real_pairs(batch))
