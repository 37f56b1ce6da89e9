"""SFT: cross-entropy of the next token, for pre-training and supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen
from ryzjax.training.objectives.losses import summed_loss
from ryzjax.training.objectives.objective import Params, Sums, Trained
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["SFT"]


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Cross-entropy of the tokens that count; pre-training is the case where all do.

    Attributes:
      chunk_tokens: tokens whose logits are in memory at once.
    """

    chunk_tokens: int

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """Tokens that count."""
        return jnp.sum(batch.loss_weights)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """See `Objective`."""
        hidden = model.hidden(params, frozen, batch.segments, key)  # pyright: ignore[reportArgumentType]
        found = summed_loss(
            model.logits,
            model.head_params(params),  # pyright: ignore[reportArgumentType]
            frozen,
            hidden,
            batch.targets.reshape(-1),
            batch.loss_weights.reshape(-1),
            chunk_tokens=self.chunk_tokens,
        )
        return Sums(found.loss, {"accuracy": found.correct})
