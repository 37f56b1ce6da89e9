"""DataReport: counts of what happened to the rows."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["DataReport"]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Counts of rows and tokens. The sum of two reports is the report of both sets of rows.

    Attributes:
      rows: Rows read.
      examples: Examples made and kept.
      dropped_long: Rows left out because they are longer than a sequence.
      dropped_untrained: Rows left out because none of their tokens is trained.
      truncated: Examples that were cut to a sequence.
      tokens: Tokens of the examples.
      trained_tokens: Tokens that are targets of the loss.
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
