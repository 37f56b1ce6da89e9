"""One row of data. Its columns are read with errors that name the file and the line of the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ryzjax.errors import DataError, UntrainedRowError

__all__ = ["Row"]


class Row:
    """One row.

    Args:
      where: the place of the row for error messages, such as "data.jsonl:3".
      values: the values by column.
    """

    def __init__(self, where: str, values: Mapping[str, object]):
        self.where = where
        self.values = values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str) -> str:
        """Returns a column of text. Raises DataError if it is missing or not a string."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.error(f"{name}={value!r:.80} is not text")
        return value

    def texts(self, name: str, *, least: int = 1) -> tuple[str, ...]:
        """Returns a list of texts. Raises DataError if the column is anything else or has fewer than `least`."""
        value = self.value(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self.error(f"{name}={value!r:.80} is not a list of texts")
        if len(value) < least:
            raise self.error(f"{name} has {len(value)} texts; expected at least {least}")
        return tuple(value)

    def index(self, name: str, count: int) -> int:
        """Returns an index below `count`, stored as an integer or as digits. Raises DataError for anything else."""
        value = self.value(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.error(f"{name}={value!r:.80} is not an index of {count} choices; expected 0 to {count - 1}")
        return value

    def value(self, name: str) -> object:
        """Returns a column of any type. Raises DataError if it is missing."""
        if name not in self.values:
            raise self.error(f"no {name!r}; the row has {', '.join(map(repr, self.values)) or 'nothing'}")
        return self.values[name]

    def error(self, message: str) -> DataError:
        """Returns an error about this row."""
        return DataError(f"{self.where}: {message}")

    def untrained(self, reason: str) -> UntrainedRowError:
        """Returns the error of a row that has nothing to train on. `reason` says why; the remedy is appended."""
        remedy = "correct the row, or set drop_untrained (--drop-untrained) to leave such rows out"
        return UntrainedRowError(f"{self.where}: {reason}; {remedy}")
