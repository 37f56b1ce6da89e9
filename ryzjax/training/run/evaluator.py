"""Evaluator: the mean loss of a model over the evaluation data."""

from __future__ import annotations

import jax

from ryzjax.data.training.loader import BatchLoader
from ryzjax.training.model import Frozen
from ryzjax.training.programs import Programs
from ryzjax.training.run.device_batch import place_batch, split_batch

__all__ = ["Evaluator"]


class Evaluator:
    """Evaluates parameters over one pass of the evaluation data. Compiles its program when it is made.

    Args:
      programs: The programs of the run.
      frozen: Frozen arrays of the run.
      data: Batches of `programs.rows * programs.accumulate` rows.
      max_batches: Number of batches to evaluate; None for all of them.
    """

    def __init__(self, programs: Programs, frozen: Frozen, data: BatchLoader, *, max_batches: int | None):
        self._programs = programs
        self._frozen = frozen
        self._data = data
        self._max_batches = max_batches
        self._evaluate = programs.compile_eval()

    def evaluate(self, params: dict) -> tuple[float, dict[str, float]]:
        """Returns the mean loss and the means of the objective's details.

        Raises:
          DataError: A row is malformed.
        """
        loss = count = 0.0
        details: dict[str, float] = {}
        for index, batch in enumerate(self._data.one_pass()):
            if index == self._max_batches:
                break
            for part in split_batch(batch, self._programs.accumulate):
                placed = place_batch(part, self._programs.eval_batch)
                sums = jax.device_get(self._evaluate(params, self._frozen, placed))
                loss, count = loss + float(sums.loss), count + float(sums.count)
                details = {name: details.get(name, 0.0) + float(value) for name, value in sums.details.items()}
        return loss / max(count, 1.0), {name: value / max(count, 1.0) for name, value in details.items()}
