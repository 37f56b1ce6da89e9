"""What became of the rows: counts."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["DataReport"]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Counts of rows and tokens; the sum of two is that of both sets of rows.

    Attributes:
      rows: read.
      examples: made of them and kept.
      dropped_long: rows left out because they are longer than a sequence.
      dropped_untrained: rows left out because no token of theirs is trained.
      truncated: examples that were cut to a sequence.
      tokens: of the examples.
      trained_tokens: of these, targets of the loss.
    """

    rows: int = 0
    examples: int = 0
    dropped_long: int = 0
    dropped_untrained: int = 0
    truncated: int = 0
    tokens: int = 0
    trained_tokens: int = 0

    def __add__(self, other: DataReport) -> DataReport:
        return DataReport(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
