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
    """Cross-entropy of the tokens that count. In pre-training all of them count.

    Attributes:
      chunk_tokens: Tokens whose logits are in memory at once.
    """

    chunk_tokens: int

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """Returns the number of tokens that count."""
        return jnp.sum(batch.loss_weights)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """Returns the sum of cross-entropy over the tokens that count, and how many of them are predicted correctly."""
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
