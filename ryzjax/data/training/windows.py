"""Windows: the unit in which rows are shuffled, tokenized and packed into rows of a batch."""

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
"""A row of a batch holds several examples (packed), one example (single), the chosen or rejected answer of a pair
(pairs), or a part of documents laid end to end (cut)."""

Unit = list[list[Segment]]
"""Rows of a batch that stay together: one, or two for pairs."""
_ROWS_STREAM, _UNITS_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Every window of every epoch. Each is computed independently, so a run can resume at any of them.

    Attributes:
      examples: Examples of all rows.
      sequence_tokens: Tokens of a row of a batch.
      arrangement: How examples fill rows of a batch.
      seed: Seed of the shuffle, which differs by epoch; None keeps the order of the rows.
      window_rows: Rows of data in a window.
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
          DataError: A row is malformed.
        """
        found: list[list[Segment]] = []
        report = DataReport()
        for index in self._rows(epoch, window):
            examples, counts = self.examples.read(int(index))
            found.append([segment_of(example, int(index)) for example in examples])
            report += counts
        return self._shuffled(self._units(found), epoch, window), report

    def count_units(self, epoch: int, lengths: Sequence[Sequence[int]]) -> int:
        """Returns the number of units of an epoch, given the lengths of each row's examples."""
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
        # Packing sorts by length, and a long document makes many consecutive rows.
        if self.seed is None or len(units) < 2:
            return units
        order = permuted(np.arange(len(units)), len(units), self.seed, _UNITS_STREAM, epoch, window)
        return [units[i] for i in order]
