"""A window of rows as packed rows of a batch: the unit in which data is shuffled, tokenized and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ryzjax.data.training.batch import Segment, cut_into_rows, segment_of
from ryzjax.data.training.examples import ExampleRows
from ryzjax.data.training.packing import pack
from ryzjax.data.training.permutation import permuted
from ryzjax.data.training.report import DataReport

__all__ = ["Arrangement", "Unit", "Windows"]

Arrangement = Literal["packed", "single", "pairs", "cut"]
"""Rows of a batch hold several examples; one; chosen and rejected in turn; or documents end to end, cut."""

Unit = list[list[Segment]]
"""Rows of a batch that stay together: one, or two in pairs."""
_ROWS_STREAM, _UNITS_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Every window of every epoch, each computed on its own, so that a run can go on at any.

    Attributes:
      examples: of all rows.
      sequence_tokens: length of a row of a batch.
      arrangement: of examples in rows of a batch.
      seed: of the shuffle, anew for each epoch; None keeps the order of the rows.
      window_rows: rows of data in a window.
    """

    examples: ExampleRows
    sequence_tokens: int
    arrangement: Arrangement
    seed: int | None
    window_rows: int

    def __len__(self) -> int:
        return -(-len(self.examples) // self.window_rows)

    @property
    def rows_per_unit(self) -> int:
        """Rows of a batch in a unit."""
        return 2 if self.arrangement == "pairs" else 1

    def load(self, epoch: int, window: int) -> tuple[list[Unit], DataReport]:
        """Tokenizes, packs and shuffles a window.

        Raises:
          DataError: a row is bad.
        """
        found: list[list[Segment]] = []
        report = DataReport()
        for index in self._rows(epoch, window):
            examples, counts = self.examples.read(int(index))
            found.append([segment_of(example, int(index)) for example in examples])
            report += counts
        return self._shuffled(self._units(found), epoch, window), report

    def count_units(self, epoch: int, lengths: Sequence[Sequence[int]]) -> int:
        """Units of an epoch, by the lengths of each row's examples alone."""
        count = 0
        for window in range(len(self)):
            of_rows = [lengths[int(index)] for index in self._rows(epoch, window)]
            flat = [length for row in of_rows for length in row]
            match self.arrangement:
                case "packed":
                    count += len(pack(flat, self.sequence_tokens))
                case "single":
                    count += len(flat)
                case "pairs":
                    count += sum(1 for row in of_rows if row)
                case "cut":
                    count += -(-sum(flat) // self.sequence_tokens)
        return count

    def _rows(self, epoch: int, window: int) -> np.ndarray:
        size = len(self.examples)
        indices = np.arange(window * self.window_rows, min(size, (window + 1) * self.window_rows))
        return indices if self.seed is None else permuted(indices, size, self.seed, _ROWS_STREAM, epoch)

    def _units(self, found: list[list[Segment]]) -> list[Unit]:
        if self.arrangement == "pairs":
            return [[[segment] for segment in pair] for pair in found if pair]
        segments = [segment for row in found for segment in row]
        match self.arrangement:
            case "packed":
                bins = pack([len(segment.token_ids) for segment in segments], self.sequence_tokens)
                return [[[segments[i] for i in members]] for members in bins]
            case "single":
                return [[[segment]] for segment in segments]
            case "cut":
                return [[row] for row in cut_into_rows(segments, self.sequence_tokens)]

    def _shuffled(self, units: list[Unit], epoch: int, window: int) -> list[Unit]:
        # Packing sorts by length, and a long document is many rows in a row.
        if self.seed is None or len(units) < 2:
            return units
        order = permuted(np.arange(len(units)), len(units), self.seed, _UNITS_STREAM, epoch, window)
        return [units[i] for i in order]
