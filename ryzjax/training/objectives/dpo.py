"""DPO: direct preference optimization."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen
from ryzjax.training.objectives.objective import Params, Sums, Trained
from ryzjax.training.objectives.pairs import count_pairs, real_pairs, row_log_probs
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["DPO"]


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290). The reference is the model before training.

    Attributes:
      beta: Strength of the pull towards the reference model.
      label_smoothing: Probability that a pair is labelled the wrong way round (cDPO).
      chunk_tokens: Tokens whose logits are in memory at once.
    """

    beta: float
    label_smoothing: float
    chunk_tokens: int

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """Returns the number of pairs."""
        return count_pairs(batch)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """Returns the sums of the pair losses, of correctly ranked pairs, and of rewards."""
        policy = row_log_probs(model, params, frozen, batch, key, self.chunk_tokens)
        start = model.reference_params(frozen)
        reference = jax.lax.stop_gradient(row_log_probs(model, start, frozen, batch, None, self.chunk_tokens))
        rewards = self.beta * (policy - reference)
        margin = rewards[0::2] - rewards[1::2]
        losses = -(
            (1.0 - self.label_smoothing) * jax.nn.log_sigmoid(margin)
            + self.label_smoothing * jax.nn.log_sigmoid(-margin)
        )
        real = real_pairs(batch)
        details = {
            "accuracy": jnp.sum(jnp.where(margin > 0, real, 0.0)),
            "margin": jnp.sum(real * margin),
            "chosen_reward": jnp.sum(real * rewards[0::2]),
            "rejected_reward": jnp.sum(real * rewards[1::2]),
        }
        return Sums(jnp.sum(real * losses), details)
