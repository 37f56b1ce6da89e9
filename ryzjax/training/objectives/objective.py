"""Objective: the interface of a loss that training minimizes.

Every objective is a sum over tokens or pairs, so that the sums of the parts of a batch add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["Objective", "Params", "Sums", "Trained"]

Params = Mapping
Trained = LoraModel | FullModel


class Sums(NamedTuple):
    """The sums of an objective over a batch.

    Attributes:
      loss: The sum that is differentiated.
      details: Sums of values to log, by name. They are divided by the same count as the loss.
    """

    loss: Float[Array, ""]
    details: dict[str, Float[Array, ""]]


@runtime_checkable
class Objective(Protocol):
    """A loss over the parameters of a model."""

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """Returns the number of tokens or pairs to divide the sums by."""
        ...

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """Returns the sums over a batch. Pure. `key` is the key of dropout, or None in evaluation."""
        ...
