"""What rows of training data are to the rest: a length, and a mapping by index; parts and joins of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ryzjax.data.row import Row

__all__ = ["LocatedRows", "Rows", "SelectedRows", "read_row", "row_place"]


class Rows(Protocol):
    """Rows that can be read in any order: a list of dicts is one, and so is anything that computes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, object]: ...


@runtime_checkable
class LocatedRows(Protocol):
    """Rows that know where they are, such as line 3 of a file."""

    def place(self, index: int, /) -> str: ...


class SelectedRows:
    """Some rows of others, in the order of `indices`."""

    def __init__(self, rows: Rows, indices: Sequence[int] | np.ndarray):
        self._rows = rows
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        return self._rows[int(self._indices[index])]

    def place(self, index: int) -> str:
        """Where the row is in the rows it was taken from."""
        return row_place(self._rows, int(self._indices[index]))


def row_place(rows: Rows, index: int) -> str:
    """Where a row is, for messages: "data.jsonl:3", or "row 2" (counted from 0) of rows that do not know."""
    return rows.place(index) if isinstance(rows, LocatedRows) else f"row {index}"


def read_row(rows: Rows, index: int) -> Row:
    """One row with its place.

    Raises:
      DataError: the row is malformed.
    """
    place = row_place(rows, index)
    values = rows[index]
    if not isinstance(values, Mapping):
        raise Row(place, {}).error(f"is a {type(values).__name__}; expected columns by name, such as a JSON object")
    return Row(place, values)
