"""One row of data: its columns, read with errors that say where the row is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ryzjax.errors import DataError, UntrainedRowError

__all__ = ["Row"]


class Row:
    """One row.

    Args:
      where: for messages, such as "data.jsonl:3".
      values: by column.
    """

    def __init__(self, where: str, values: Mapping[str, object]):
        self.where = where
        self.values = values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str) -> str:
        """A column of text. Raises DataError where it is missing or something else."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.error(f"{name}={value!r:.80} is not text")
        return value

    def texts(self, name: str, *, least: int = 1) -> tuple[str, ...]:
        """A column of several texts. Raises DataError where it is anything else, or has fewer than `least`."""
        value = self.value(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self.error(f"{name}={value!r:.80} is not a list of texts")
        if len(value) < least:
            raise self.error(f"{name} has {len(value)} texts; expected at least {least}")
        return tuple(value)

    def index(self, name: str, count: int) -> int:
        """A column that chooses one of `count` things: a number from 0, as digits too. Raises DataError."""
        value = self.value(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.error(f"{name}={value!r:.80} chooses none of {count}; expected 0 to {count - 1}")
        return value

    def value(self, name: str) -> object:
        """A column, whatever it holds. Raises DataError where it is missing."""
        if name not in self.values:
            raise self.error(f"no {name!r}; the row has {', '.join(map(repr, self.values)) or 'nothing'}")
        return self.values[name]

    def error(self, message: str) -> DataError:
        """An error about this row."""
        return DataError(f"{self.where}: {message}")

    def untrained(self, reason: str) -> UntrainedRowError:
        """The error of a row that has nothing to train on; `reason` says why, and the remedy is added to it."""
        remedy = "correct the row, or set drop_untrained (--drop-untrained) to leave such rows out"
        return UntrainedRowError(f"{self.where}: {reason}; {remedy}")
