"""Puts batches of the host on the devices."""

from __future__ import annotations

import jax
import numpy as np

from ryzjax.data.training.batch import TrainBatch
from ryzjax.training.objectives.step_batch import StepBatch

__all__ = ["place_batch", "split_batch"]


def place_batch(batch: TrainBatch, like: StepBatch) -> StepBatch:
    """Returns a batch on the devices, in the shape that a compiled program takes.

    Args:
      batch: The rows of this process.
      like: Shapes and shardings of the program's batch, such as `Programs.batch`.
    """
    return StepBatch(*map(_on_devices, batch, like))


def split_batch(batch: TrainBatch, count: int) -> list[TrainBatch]:
    """Splits the rows of a batch into `count` parts and drops the parts that are only padding."""
    parts = [TrainBatch(*(np.array_split(array, count)[i] for array in batch)) for i in range(count)]
    return [part for part in parts if part.loss_weights.any()]


def _on_devices(array: np.ndarray, shape: jax.Array) -> jax.Array:
    local = array.reshape(*shape.shape[:-2], -1, shape.shape[-1])
    return jax.make_array_from_process_local_data(shape.sharding, local)
