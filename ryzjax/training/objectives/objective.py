"""What is minimised: cross-entropy (pre-training and SFT), DPO, ORPO. Each a sum, so that parts of a batch add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ryzjax.batch import SegmentBatch
from ryzjax.errors import ConfigError
from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.losses import summed_loss, token_log_probs

__all__ = ["DPO", "ORPO", "SFT", "Objective", "ObjectiveName", "StepBatch", "Sums", "make_objective"]

ObjectiveName = Literal["sft", "dpo", "orpo"]
Params = Mapping
Trained = LoraModel | FullModel


class StepBatch(NamedTuple):
    """Packed rows and what is learnt from them; see `data.packing.TrainBatch`, whose fields these are.

    Attributes:
      token_ids, positions, segment_ids: as of `SegmentBatch`.
      targets: the token after each one, in its segment.
      loss_weights: 1 where the target counts, else 0.
    """

    token_ids: Int[Array, "rows S"]
    positions: Int[Array, "rows S"]
    segment_ids: Int[Array, "rows S"]
    targets: Int[Array, "rows S"]
    loss_weights: Float[Array, "rows S"]

    @property
    def segments(self) -> SegmentBatch:
        """What the model is given."""
        return SegmentBatch(self.token_ids, self.positions, self.segment_ids)


class Sums(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
      loss: the sum that is differentiated.
      details: sums of what is shown beside it, by name; divided by the same count.
    """

    loss: Float[Array, ""]
    details: dict[str, Array]


class Objective(Protocol):
    """A loss over a model's parameters."""

    def count(self, batch: StepBatch) -> Array:
        """float32 scalar: what the sums are divided by, tokens or pairs."""
        ...

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """The sums of a batch. Pure. `key` is of dropout; None in evaluation."""
        ...


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Cross-entropy of the tokens that count; pre-training is the case where all do.

    Attributes:
      chunk_tokens: tokens whose logits are in memory at once.
    """

    chunk_tokens: int

    def count(self, batch: StepBatch) -> Array:
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


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290) against the model as it was before training.

    Rows come in pairs: the chosen answer at 2i, the rejected one at 2i + 1.

    Attributes:
      beta: how dear it is to leave the reference.
      label_smoothing: probability that a pair is the wrong way round (cDPO).
      chunk_tokens: as of `SFT`.
    """

    beta: float
    label_smoothing: float
    chunk_tokens: int

    def count(self, batch: StepBatch) -> Array:
        """Pairs."""
        return _pairs(batch)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """See `Objective`."""
        policy = _row_log_probs(model, params, frozen, batch, key, self.chunk_tokens)
        start = model.reference_params(frozen)
        reference = jax.lax.stop_gradient(_row_log_probs(model, start, frozen, batch, None, self.chunk_tokens))
        rewards = self.beta * (policy - reference)
        margin = rewards[0::2] - rewards[1::2]
        losses = -(
            (1.0 - self.label_smoothing) * jax.nn.log_sigmoid(margin)
            + self.label_smoothing * jax.nn.log_sigmoid(-margin)
        )
        real = _real_pairs(batch)
        details = {
            "accuracy": jnp.sum(real * (margin > 0)),
            "margin": jnp.sum(real * margin),
            "chosen_reward": jnp.sum(real * rewards[0::2]),
            "rejected_reward": jnp.sum(real * rewards[1::2]),
        }
        return Sums(jnp.sum(real * losses), details)


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """Odds-ratio preference optimization (Hong et al., arXiv 2403.07691): no reference model. Rows as of `DPO`.

    The loss of a pair is the mean cross-entropy of the chosen answer's tokens, and beta times the negative log of the
    sigmoid of the log odds ratio of both answers' mean probabilities a token.

    Attributes:
      beta: weight of the odds ratio, lambda in the paper.
      chunk_tokens: as of `SFT`.
    """

    beta: float
    chunk_tokens: int

    def count(self, batch: StepBatch) -> Array:
        """Pairs."""
        return _pairs(batch)

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """See `Objective`."""
        tokens = jnp.maximum(jnp.sum(batch.loss_weights, axis=1), 1.0)
        mean = _row_log_probs(model, params, frozen, batch, key, self.chunk_tokens) / tokens
        # log(p / (1 - p)) of p = exp(mean): both terms from the logarithm, which keeps its digits near p = 0 and 1.
        log_odds = mean - jnp.log(-jnp.expm1(jnp.minimum(mean, -1e-7)))
        ratio = log_odds[0::2] - log_odds[1::2]
        real = _real_pairs(batch)
        losses = -mean[0::2] - self.beta * jax.nn.log_sigmoid(ratio)
        details = {"accuracy": jnp.sum(real * (ratio > 0)), "log_odds_ratio": jnp.sum(real * ratio)}
        return Sums(jnp.sum(real * losses), details)


def make_objective(
    name: ObjectiveName, *, chunk_tokens: int, beta: float = 0.1, label_smoothing: float = 0.0
) -> Objective:
    """An objective by its name.

    Raises:
      ConfigError: a value out of range.
    """
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens={chunk_tokens}; expected 1 or more")
    if not beta > 0:
        raise ConfigError(f"beta={beta}; expected a positive number")
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={label_smoothing}; expected 0 or more, and less than 0.5")
    if name == "dpo":
        return DPO(beta=beta, label_smoothing=label_smoothing, chunk_tokens=chunk_tokens)
    return ORPO(beta=beta, chunk_tokens=chunk_tokens) if name == "orpo" else SFT(chunk_tokens=chunk_tokens)


def _row_log_probs(
    model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None, chunk: int
) -> Float[Array, " rows"]:
    """Sum of log p of the counted tokens of each row."""
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


def _real_pairs(batch: StepBatch) -> Array:
    """float32 [pairs]: 0 for pairs that only fill a batch up."""
    return (jnp.sum(batch.loss_weights[0::2], axis=1) > 0).astype(jnp.float32)


def _pairs(batch: StepBatch) -> Array:
    return jnp.sum(_real_pairs(batch))
