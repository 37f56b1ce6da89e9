"""BatchLoader: an endless iterator over batches, whose order depends only on the seed and can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.progress import track

from ryzjax.data.training.batch import TrainBatch, make_batch
from ryzjax.data.training.report import DataReport
from ryzjax.data.training.windows import Unit, Windows
from ryzjax.errors import ConfigError, DataError

__all__ = ["BatchLoader", "Batches"]


class Batches(Protocol):
    """An iterator over batches that can be resumed in another process."""

    def __iter__(self) -> Iterator[TrainBatch]: ...

    def __next__(self) -> TrainBatch: ...

    def state(self) -> dict[str, int]: ...

    def restore(self, state: Mapping[str, int], /) -> None: ...

    def batch_places(self) -> tuple[str, ...]: ...

    @property
    def epoch(self) -> int: ...


class BatchLoader:
    """Batches of packed rows, epoch after epoch.

    Rows are shuffled, tokenized and packed a window at a time, so the first batch of a large data set is available at
    once. The last batch of an epoch is padded, or left out.

    Args:
      windows: The rows, in windows.
      batch_rows: Rows of a batch, over all processes.
      drop_last: Leave out the last batch of an epoch if it is not full.
      epochs: Number of epochs; None never stops.
      process_index: Index of this process. Each process takes a slice of every batch.
      process_count: Number of processes.

    Attributes:
      report: Counts of the rows that this loader has tokenized so far.

    Raises:
      ConfigError: `batch_rows` does not divide over the processes, or over pairs.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        batch_rows: int,
        drop_last: bool = False,
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not 0 <= process_index < process_count:
            raise ConfigError(f"process_index={process_index}; expected 0 to {process_count - 1}")
        multiple = windows.rows_per_unit * process_count
        if batch_rows < 1 or batch_rows % multiple:
            pairs = "pairs of rows, chosen and rejected, over " if windows.rows_per_unit == 2 else ""
            raise ConfigError(
                f"batch_rows={batch_rows} does not divide over {pairs}{process_count} process(es); expected a "
                f"multiple of {multiple}"
            )
        self.report = DataReport()
        self._windows = windows
        self._batch_rows = batch_rows
        self._drop_last = drop_last
        self._epochs = epochs
        self._process_index, self._process_count = process_index, process_count
        self._epoch = self._window = self._unit = 0
        self._loaded: list[Unit] | None = None
        self._sources: list[list[int]] = []
        self._lengths: list[tuple[int, ...]] | None = None
        self._scanned = DataReport()
        self._fingerprint: int | None = None

    def shard(self, process_index: int, process_count: int) -> BatchLoader:
        """Returns a loader of one process's slice of each batch. The `state` of all processes is the same.

        Raises:
          ConfigError: `batch_rows` does not divide over the processes.
        """
        return BatchLoader(
            self._windows,
            batch_rows=self._batch_rows,
            drop_last=self._drop_last,
            epochs=self._epochs,
            process_index=process_index,
            process_count=process_count,
        )

    def one_pass(self) -> BatchLoader:
        """Returns a new loader of only the first epoch, from its start, for evaluation."""
        return BatchLoader(
            self._windows,
            batch_rows=self._batch_rows,
            drop_last=self._drop_last,
            epochs=1,
            process_index=self._process_index,
            process_count=self._process_count,
        )

    @property
    def epoch(self) -> int:
        """Number of complete passes over the data."""
        return self._epoch

    @property
    def num_rows(self) -> int:
        """Number of rows of data."""
        return len(self._windows.examples)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TrainBatch:
        """Returns the next batch.

        Raises:
          DataError: A row is malformed, or no row makes an example.
          StopIteration: After the last of `epochs`.
        """
        while self._epochs is None or self._epoch < self._epochs:
            at_start = self._window == self._unit == 0
            units = self._take(self._batch_rows // self._windows.rows_per_unit)
            if units:
                return self._batch(units)
            if at_start:
                raise DataError(
                    f"no batch can be made of {self.num_rows:,} rows ({self.report}); expected more rows, or "
                    "fewer that are dropped"
                )
        raise StopIteration

    def state(self) -> dict[str, int]:
        """Returns the loader's position as JSON values. `restore` continues from it."""
        return {"epoch": self._epoch, "window": self._window, "unit": self._unit, **self._identity()}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continues from the state of another loader: the next batch is the one that the other would have returned.

        Raises:
          ConfigError: The other loader read other data, or read it in another order.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ConfigError(
                    f"the data is not that of the run to resume: its {name} was {state.get(name)}, and is {mine}. "
                    "Resume with the same data and options, or start a new run"
                )
        self._epoch, self._window, self._unit = (int(state[name]) for name in ("epoch", "window", "unit"))
        self._loaded = None

    def batch_places(self) -> tuple[str, ...]:
        """Returns where the rows of the last batch come from, such as "data.jsonl:3", in order."""
        rows = dict.fromkeys(row for segments in self._sources for row in segments)
        return tuple(self._windows.examples.place(row) for row in rows)

    def segment_places(self) -> list[list[str]]:
        """Returns where each segment of each row of the last batch comes from."""
        return [[self._windows.examples.place(row) for row in segments] for segments in self._sources]

    def scan(self, *, show_progress: bool = False) -> DataReport:
        """Reads and tokenizes all rows once, which finds every malformed one, and returns their counts.

        Raises:
          DataError: A row is malformed.
        """
        if self._lengths is None:
            indices = range(self.num_rows)
            console = Console(stderr=True)
            lengths: list[tuple[int, ...]] = []
            for i in track(indices, "reading data", console=console, disable=not show_progress, transient=True):
                examples, counts = self._windows.examples.read(i)
                lengths.append(tuple(map(len, examples)))
                self._scanned += counts
            self._lengths = lengths
        return self._scanned

    def count_batches(self, epochs: int = 1, *, show_progress: bool = False) -> int:
        """Returns the exact number of batches of the first epochs, which differs by epoch because packing does.

        Reads and tokenizes all rows once, as `scan` does.

        Raises:
          DataError: A row is malformed.
        """
        self.scan(show_progress=show_progress)
        assert self._lengths is not None
        size = self._batch_rows // self._windows.rows_per_unit
        units = [self._windows.count_units(epoch, self._lengths) for epoch in range(epochs)]
        return sum(count // size if self._drop_last else -(-count // size) for count in units)

    def _take(self, count: int) -> list[Unit]:
        """Returns the next units of this epoch: fewer at its end, or none if an incomplete batch is left out."""
        units: list[Unit] = []
        while len(units) < count and self._window < len(self._windows):
            if self._loaded is None:
                self._loaded, report = self._windows.load(self._epoch, self._window)
                self.report += report
                if self._unit > len(self._loaded):
                    raise DataError(
                        f"window {self._window} of the data has {len(self._loaded)} packed rows, but the run to "
                        f"resume has read {self._unit}: the rows, or how they are read, have changed. Start a new run"
                    )
            taken = self._loaded[self._unit : self._unit + count - len(units)]
            units += taken
            self._unit += len(taken)
            if self._unit == len(self._loaded):
                self._window, self._unit, self._loaded = self._window + 1, 0, None
        if self._window == len(self._windows):
            self._epoch, self._window = self._epoch + 1, 0
        return units if len(units) == count or not self._drop_last else []

    def _batch(self, units: list[Unit]) -> TrainBatch:
        size = self._batch_rows // self._process_count
        rows = [row for unit in units for row in unit]
        rows = rows[self._process_index * size : (self._process_index + 1) * size]
        self._sources = [[segment.row for segment in row] for row in rows]
        return make_batch(rows, num_rows=size, sequence_tokens=self._windows.sequence_tokens)

    def _identity(self) -> dict[str, int]:
        if self._fingerprint is None:
            self._fingerprint = self._windows.examples.fingerprint()
        windows = self._windows
        return {
            "rows": self.num_rows,
            "sequence_tokens": windows.sequence_tokens,
            "window_rows": windows.window_rows,
            "seed": -1 if windows.seed is None else windows.seed,
            "fingerprint": self._fingerprint,
        }
