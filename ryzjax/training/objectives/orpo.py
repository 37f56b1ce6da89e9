"""ORPO: odds-ratio preference optimization."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen
from ryzjax.training.objectives.objective import Params, Sums, Trained
from ryzjax.training.objectives.pairs import count_pairs, real_pairs, row_log_probs
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["ORPO"]


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """Odds-ratio preference optimization (Hong et al., arXiv 2403.07691), which needs no reference model.

    The loss of a pair is the mean cross-entropy of the chosen answer's tokens, minus beta times the log-sigmoid of the
    log odds ratio of the answers' mean token probabilities.

    Attributes:
      beta: Weight of the odds ratio, lambda in the paper.
      chunk_tokens: Tokens whose logits are in memory at once.
    """

    beta: float
    chunk_tokens: int

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """Returns the number of pairs."""
        return count_pairs(batch)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """Returns the sums of the pair losses, of correctly ranked pairs, and of log odds ratios."""
        tokens = jnp.maximum(jnp.sum(batch.loss_weights, axis=1), 1.0)
        mean = row_log_probs(model, params, frozen, batch, key, self.chunk_tokens) / tokens
        # log(p / (1 - p)) with p = exp(mean). Both terms come from the logarithm, which is accurate near p = 0 and 1.
        log_odds = mean - jnp.log(-jnp.expm1(jnp.minimum(mean, -1e-7)))
        ratio = log_odds[0::2] - log_odds[1::2]
        real = real_pairs(batch)
        losses = -mean[0::2] - self.beta * jax.nn.log_sigmoid(ratio)
        details = {"accuracy": jnp.sum(jnp.where(ratio > 0, real, 0.0)), "log_odds_ratio": jnp.sum(real * ratio)}
        return Sums(jnp.sum(real * losses), details)
