"""Prefetcher: makes batches ahead in a thread, while the previous step runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

from ryzjax.data.training.batch import TrainBatch
from ryzjax.data.training.loader import Batches

__all__ = ["Prefetcher"]

_POLL_S = 0.1


class _Made(NamedTuple):
    """A batch or the error that replaced it, and the loader's state after it."""

    batch: TrainBatch | BaseException
    state: dict[str, int]
    places: tuple[str, ...]
    epoch: int


class Prefetcher:
    """Takes batches from a loader in a thread, a few ahead.

    `state`, `epoch` and `batch_places` describe the last batch that was taken from the prefetcher, not the last one
    made. Use it in a `with` block, or `close` it.

    Args:
      batches: The loader. Nothing else may use it meanwhile.
      depth: Number of batches made ahead.
    """

    def __init__(self, batches: Batches, *, depth: int = 2):
        self._batches = batches
        self._depth = depth
        self._state, self._places, self._epoch = batches.state(), batches.batch_places(), batches.epoch
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._made: queue.Queue[_Made] = queue.Queue()
        self._end: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TrainBatch:
        """Returns the next batch, or raises the error that the loader raised in its place."""
        if self._end is not None:
            raise self._end
        if self._thread is None:
            self._start()
        made = self._made.get()
        if isinstance(made.batch, BaseException):
            self._end = made.batch
            self.close()
            raise made.batch
        self._state, self._places, self._epoch = made.state, made.places, made.epoch
        return made.batch

    @property
    def epoch(self) -> int:
        """Number of complete passes over the data."""
        return self._epoch

    def state(self) -> dict[str, int]:
        """Returns the loader's state after the last batch that was taken."""
        return dict(self._state)

    def restore(self, state: Mapping[str, int]) -> None:
        """Restores the loader's state and drops the batches that were made ahead."""
        self.close()
        self._batches.restore(state)
        self._state, self._epoch, self._end = self._batches.state(), self._batches.epoch, None

    def batch_places(self) -> tuple[str, ...]:
        """Returns where the rows of the last batch that was taken come from."""
        return self._places

    def close(self) -> None:
        """Ends the thread. The loader then stands after the last batch made, not the last one taken."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        self._stop = threading.Event()
        self._made = queue.Queue(maxsize=self._depth)
        self._thread = threading.Thread(
            target=self._run, args=(self._stop, self._made), name="ryzjax-data", daemon=True
        )
        self._thread.start()

    def _run(self, stop: threading.Event, made: queue.Queue[_Made]) -> None:
        while not stop.is_set():
            try:
                batch: TrainBatch | BaseException = next(self._batches)
            # Every error is raised where the batch is taken.
            except BaseException as error:
                batch = error
            item = _Made(batch, self._batches.state(), self._batches.batch_places(), self._batches.epoch)
            while not stop.is_set():
                try:
                    made.put(item, timeout=_POLL_S)
                    break
                except queue.Full:
                    continue
            if isinstance(batch, BaseException):
                return
