"""Objective: the interface of a loss that training minimizes.

Every objective is a sum over tokens or pairs, so that the sums of the parts of a batch add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
from jaxtyping import Array, Float

from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["Objective", "Params", "Sums", "Trained"]

Params = Mapping
Trained = LoraModel | FullModel


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

    def count(self, batch: StepBatch) -> Float[Array, ""]:
        """float32 scalar: what the sums are divided by, tokens or pairs."""
        ...

    def sums(self, model: Trained, params: Params, frozen: Frozen, batch: StepBatch, key: jax.Array | None) -> Sums:
        """The sums of a batch. Pure. `key` is of dropout; None in evaluation."""
        ...
