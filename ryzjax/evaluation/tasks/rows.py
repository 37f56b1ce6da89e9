"""Reads rows of evaluation data from local files (JSON lines, CSV) or from the Hugging Face Hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ryzjax.data.row import Row
from ryzjax.errors import DataError, MissingExtraError

__all__ = ["DataSource", "HubData", "LocalData", "Row", "Rows", "Split", "open_data"]

_LOOSE_ROW = re.compile(r'"(.*?)",([^",\n]*)(?:\n|\Z)', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The location of one split of a data set, in a local folder and on the Hub.

    Attributes:
      file: The path of the `.jsonl` or `.csv` file in the local folder.
      dataset, config, split: The names on the Hugging Face Hub. The config may be None.
      columns: The columns of a CSV file, in order. A header row of the file has the same names.
    """

    file: str
    dataset: str
    split: str
    config: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def hub_name(self) -> str:
        """The names on the Hub, joined by colons."""
        return ":".join(part for part in (self.dataset, self.config, self.split) if part)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split.

    Attributes:
      name: The file, or the names on the Hub.
      rows: The rows.
      sha256: The SHA-256 of the file's bytes, or of the rows as JSON lines if there is no file.
    """

    name: str
    rows: tuple[Row, ...]
    sha256: str


class DataSource(ABC):
    """A source of data sets."""

    @abstractmethod
    def read(self, split: Split) -> Rows:
        """Returns all rows of a split, at least one. Raises DataError if the split is missing or malformed."""

    @abstractmethod
    def has(self, split: Split) -> bool:
        """Whether the split exists."""

    @abstractmethod
    def subsets(self, pattern: str, dataset: str) -> tuple[str, ...]:
        """Returns the sorted names of a data set's parts.

        Args:
          pattern: The path of the local files, in which `*` stands for the name of a part.
          dataset: The data set on the Hub, whose configs are its parts.
        """


class LocalData(DataSource):
    """The files of a local folder.

    Args:
      folder: The folder.

    Raises:
      DataError: The folder does not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise DataError(
                f"data folder {str(folder)!r} does not exist; expected one with files such as gsm8k_test.jsonl"
            )

    def read(self, split: Split) -> Rows:
        path = self.folder / split.file
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); expected the data set {split.hub_name} there"
            ) from error
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 (byte {error.start}); convert it, with iconv for example") from error
        rows = tuple(_csv_rows(path, text, split.columns) if path.suffix == ".csv" else _json_rows(path, text))
        if not rows:
            raise DataError(f"{path}: has no rows; download it again")
        return Rows(name=split.file, rows=rows, sha256=hashlib.sha256(raw).hexdigest())

    def has(self, split: Split) -> bool:
        return (self.folder / split.file).is_file()

    def subsets(self, pattern: str, dataset: str) -> tuple[str, ...]:
        before, after = Path(pattern).name.split("*")
        names = sorted(path.name[len(before) : -len(after)] for path in self.folder.glob(pattern))
        if not names:
            raise DataError(f"{self.folder}: no {pattern}; expected the data set {dataset}, one file for each subject")
        return tuple(names)


class HubData(DataSource):
    """Data sets on the Hugging Face Hub, or in its local cache.

    Raises:
      MissingExtraError: The package `datasets` is not installed.
    """

    def __init__(self) -> None:
        try:
            self._datasets = import_module("datasets")
        except ImportError as error:
            raise MissingExtraError(
                "data sets of the Hub need the package datasets; install it with pip install 'ryzjax[eval]', or name "
                "a folder of files with --data"
            ) from error

    def read(self, split: Split) -> Rows:
        try:
            found = self._datasets.load_dataset(split.dataset, split.config, split=split.split)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"data set {split.hub_name}: cannot be loaded ({type(error).__name__}: {error}); check the network, "
                "or name a folder of files with --data"
            ) from error
        values = [dict(row) for row in found]
        if not values:
            raise DataError(f"data set {split.hub_name}: has no rows")
        lines = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str) + "\n" for row in values)
        rows = tuple(Row(f"{split.hub_name}:{i}", row) for i, row in enumerate(values))
        return Rows(name=split.hub_name, rows=rows, sha256=hashlib.sha256(lines.encode()).hexdigest())

    def has(self, split: Split) -> bool:
        return True

    def subsets(self, pattern: str, dataset: str) -> tuple[str, ...]:
        try:
            names = self._datasets.get_dataset_config_names(dataset)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"data set {dataset}: cannot be found ({type(error).__name__}: {error}); check the network, or name "
                "a folder of files with --data"
            ) from error
        # "all" has the questions of all subjects, and "auxiliary_train" has training rows. Neither is a subject.
        return tuple(sorted(set(names) - {"all", "auxiliary_train"}))


class NoData(DataSource):
    """An empty source, for tasks that generate their items."""

    def read(self, split: Split) -> Rows:
        raise DataError(f"the task needs {split.file} and no data was given; give --data FOLDER, or --data hub")

    def has(self, split: Split) -> bool:
        return False

    def subsets(self, pattern: str, dataset: str) -> tuple[str, ...]:
        return ()


def open_data(data: str) -> DataSource:
    """Opens the source that a flag names: "hub", or a local folder. Raises the errors of `HubData` and `LocalData`."""
    return HubData() if data == "hub" else LocalData(data)


def _json_rows(path: Path, text: str) -> Iterable[Row]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); every line is one object") from error
        if not isinstance(values, dict):
            raise DataError(f"{where}: holds a {type(values).__name__}; expected a JSON object")
        yield Row(where, values)


def _csv_rows(path: Path, text: str, columns: tuple[str, ...]) -> Iterable[Row]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error:
        # Some copies of MMLU have unescaped quotes inside quoted cells.
        lines = list(_loose_cells(path, text.replace("\r\n", "\n"), header=",".join(columns)))
    for number, cells in lines:
        where = f"{path}:{number}"
        if len(cells) != len(columns):
            raise DataError(f"{where}: {len(cells)} columns; expected {len(columns)}: {', '.join(columns)}")
        if tuple(cells) != columns:
            yield Row(where, dict(zip(columns, cells, strict=True)))


def _loose_cells(path: Path, text: str, *, header: str) -> Iterable[tuple[int, list[str]]]:
    """Yields (line, cells) of rows in which every cell but the last is quoted, and only '","' ends a quoted cell."""
    at = len(header) + 1 if text.startswith(f"{header}\n") else 0
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        row = _LOOSE_ROW.match(text, at)
        if row is None:
            raise DataError(f"{path}:{line}: not valid CSV (a quoted cell does not end); download it again")
        yield line, [*row[1].split('","'), row[2]]
        at = row.end()
