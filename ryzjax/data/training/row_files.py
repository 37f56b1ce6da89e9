"""Rows of files (JSON lines, JSON, Parquet, plain text) and of Hugging Face data sets, with random access."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ryzjax.data.training.rows import Rows
from ryzjax.errors import DataError, MissingExtraError

__all__ = ["JsonFileRows", "JsonLinesRows", "TableRows", "TextFileRows", "open_rows"]

_SCAN_BYTES = 1 << 25
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


def open_rows(source: str, *, text_piece_chars: int) -> Rows:
    """Returns the rows of one file or data set. There is at least one.

    Args:
      source: A .jsonl, .json, .parquet or .txt file; or a data set, "org/name", "org/name:split" or
        "org/name:config:split" (the default split is "train").
      text_piece_chars: Most characters of a piece of a .txt file. Each piece is a row.

    Raises:
      DataError: The file does not exist, has another suffix, is empty, or cannot be read.
      MissingExtraError: The package that reads it is not installed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = _open_file(path, text_piece_chars)
    elif path.exists():
        raise DataError(f"data {source!r} is a folder; name the files in it, such as {source}/*.jsonl")
    elif path.suffix in _SUFFIXES or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise DataError(f"data {source!r}: no such file; expected one, or a data set such as org/name:split")
    else:
        rows = _open_hub(source)
    if len(rows) == 0:
        raise DataError(f"data {source!r} has no rows; give a file with at least one")
    return rows


def _open_file(path: Path, text_piece_chars: int) -> Rows:
    try:
        match path.suffix:
            case ".jsonl":
                return JsonLinesRows(path)
            case ".json":
                return JsonFileRows(path)
            case ".parquet":
                return _open_parquet(path)
            case ".txt":
                return TextFileRows(path, piece_chars=text_piece_chars)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise DataError(f"{path}: ends in {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}")


class JsonLinesRows:
    """A file with one JSON object per line. Lines are found when it is opened and parsed when they are read."""

    def __init__(self, path: Path):
        self._path = path
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected one JSON object per line")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        newlines = _newlines(self._bytes)
        starts = np.concatenate([[0], newlines + 1]).astype(np.int64)
        ends = np.concatenate([newlines, [len(self._bytes)]]).astype(np.int64)
        # Blank lines are not rows, but they count in line numbers.
        short = np.flatnonzero(ends - starts <= 2)
        blank = [i for i in short if not self._bytes[starts[i] : ends[i]].strip()]
        self._lines = np.delete(np.arange(len(starts)), blank)
        self._starts, self._ends = starts, ends

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        line = self._lines[index]
        raw = self._bytes[self._starts[line] : self._ends[line]]
        try:
            values = json.loads(raw.decode("utf-8-sig" if line == 0 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.place(index)}: not UTF-8 (byte {error.start} of the line); convert it") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(index)}: not valid JSON ({error}); every line is one object") from error
        return _json_object(values, self.place(index))

    def place(self, index: int) -> str:
        """Returns the file and the line."""
        return f"{self._path}:{self._lines[index] + 1}"


def _newlines(data: mmap.mmap) -> np.ndarray:
    """Returns the positions of line ends. The file is scanned in parts, to limit memory."""
    view = np.frombuffer(data, np.uint8)
    parts = range(0, len(view), _SCAN_BYTES)
    return np.concatenate([np.flatnonzero(view[at : at + _SCAN_BYTES] == ord("\n")) + at for at in parts])


class JsonFileRows:
    """A file with one JSON list of objects, held in memory. Each object knows the line it starts on."""

    def __init__(self, path: Path):
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start}); convert it, with iconv for example") from error
        self._rows: list[object] = []
        self._lines: list[int] = []
        at = self._skip(text, 0)
        if text[at : at + 1] != "[":
            raise DataError(f"{path}: does not start with '['; expected a list of objects, or JSON lines in a .jsonl")
        decoder, line, counted = json.JSONDecoder(), 1, 0
        at = self._skip(text, at + 1)
        while text[at : at + 1] != "]":
            line, counted = line + text.count("\n", counted, at), at
            try:
                row, at = decoder.raw_decode(text, at)
                self._rows.append(row)
                self._lines.append(line)
                at = self._skip(text, at)
                if text[at : at + 1] == ",":
                    at = self._skip(text, at + 1)
                elif text[at : at + 1] != "]":
                    raise ValueError("expected ',' or ']' after it")
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{line}: not valid JSON ({error})") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        return _json_object(self._rows[index], self.place(index))

    def place(self, index: int) -> str:
        """Returns the file and the line."""
        return f"{self._path}:{self._lines[index]}"

    @staticmethod
    def _skip(text: str, at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at


class Table(Protocol):
    """What is needed of an Arrow-like table, such as a `datasets.Dataset` or a Parquet file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, object]: ...


class TableRows:
    """Rows of a table. Null columns are left out, because a table of mixed rows has all columns in every row."""

    def __init__(self, table: Table, name: str):
        self._table = table
        self._name = name

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        row = _without_nulls(self._table[int(index)])
        assert isinstance(row, dict)
        return row

    def place(self, index: int) -> str:
        """Returns the file or data set and the row, counted from 0 as in tables."""
        return f"{self._name}, row {index}"


class TextFileRows:
    """A text file as one row, or as several consecutive pieces that end at a line end where possible.

    A row has `text`, `begins` (whether it is the first) and `ends` (whether it is the last).
    """

    def __init__(self, path: Path, *, piece_chars: int):
        self._path = path
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start}); convert it, with iconv for example") from error
        if not text.strip():
            raise DataError(f"{path} is empty; expected text")
        self._text = text
        self._ends: list[int] = []
        start = 0
        while start < len(text):
            end = min(start + piece_chars, len(text))
            newline = text.rfind("\n", start, end) if end < len(text) else -1
            start = end if newline < 0 else newline + 1
            self._ends.append(start)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        start = self._ends[index - 1] if index else 0
        text = self._text[start : self._ends[index]]
        return {"text": text, "begins": index == 0, "ends": index == len(self._ends) - 1}

    def place(self, index: int) -> str:
        """Returns the file and the line."""
        start = self._ends[index - 1] if index else 0
        line = 1 + self._text.count("\n", 0, start)
        return f"{self._path}:{line}"


class _ArrowTable:
    """A pyarrow table, which stores columns, as a `Table`."""

    def __init__(self, table: object):
        self._table = table

    def __len__(self) -> int:
        return getattr(self._table, "num_rows")  # noqa: B009 - pyarrow is not typed

    def __getitem__(self, index: int) -> Mapping[str, object]:
        return getattr(self._table, "slice")(index, 1).to_pylist()[0]  # noqa: B009


def _open_parquet(path: Path) -> Rows:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(f"{path}: Parquet files need pyarrow; pip install 'ryzjax[train]'") from error
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from error
    return TableRows(_ArrowTable(table), str(path))


def _open_hub(source: str) -> Rows:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(
            f"data {source!r} is no file, and data sets of the Hugging Face Hub need the package datasets; "
            "pip install 'ryzjax[train]', or name a file"
        ) from error
    name, *rest = source.split(":")
    if len(rest) > 2:
        raise DataError(f"data {source!r}: expected org/name, org/name:split or org/name:config:split")
    config = rest[0] if len(rest) == 2 else None
    split = rest[-1] if rest else "train"
    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data {source!r} is no file, and cannot be loaded as a data set ({type(error).__name__}: {error}); check "
            "the name, the split and the network, or name a .jsonl, .json, .parquet or .txt file"
        ) from error
    return TableRows(table, source)


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value


def _json_object(values: object, place: str) -> Mapping[str, object]:
    if not isinstance(values, dict):
        raise DataError(f"{place}: holds a {type(values).__name__}; expected a JSON object")
    return values
