"""Rows: the interface of training data, with a length and a mapping by index. Also subsets of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ryzjax.data.row import Row

__all__ = ["LocatedRows", "Rows", "SelectedRows", "read_row", "row_place"]


class Rows(Protocol):
    """Rows with random access: a list of dicts, or any object that computes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, object]: ...


@runtime_checkable
class LocatedRows(Protocol):
    """Rows that know where they come from, such as line 3 of a file."""

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
        """Returns where the row comes from in the original rows."""
        return row_place(self._rows, int(self._indices[index]))


def row_place(rows: Rows, index: int) -> str:
    """Returns where a row comes from, for messages: "data.jsonl:3", or "row 2" (from 0) if the rows do not know."""
    return rows.place(index) if isinstance(rows, LocatedRows) else f"row {index}"


def read_row(rows: Rows, index: int) -> Row:
    """Returns one row with its place.

    Raises:
      DataError: The row is not a mapping.
    """
    place = row_place(rows, index)
    values = rows[index]
    if not isinstance(values, Mapping):
        raise Row(place, {}).error(f"is a {type(values).__name__}; expected columns by name, such as a JSON object")
    return Row(place, values)
