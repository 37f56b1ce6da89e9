"""Workers: threads for work whose time grows with the size of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Workers"]

T = TypeVar("T")

INLINE_SIZE = 2048
"""Work on at most this many characters, bytes or numbers takes less time than a switch of threads."""
_LARGE_SIZE = 64 * 1024
_THREADS = 4
_LARGE_AT_ONCE = 1


class Workers:
    """Runs work on threads, so that no request holds up the others.

    Small work runs at once on the event loop, larger work on a thread. Of the work on more than 64 KiB, one piece runs
    at a time, so that it occupies neither all threads nor all cores. Requests cut their work into pieces, and those of
    several requests take turns.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ryzjax-http")
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def run(self, work: Callable[[], T], *, size: int) -> T:
        """Runs one piece of work.

        Args:
          work: A function that may run on any thread.
          size: The number of characters, bytes or numbers that it works on.

        Returns:
          The result of `work`.
        """
        if size <= INLINE_SIZE:
            return work()
        if size <= _LARGE_SIZE:
            return await self._on_thread(work)
        async with self._large:
            return await self._on_thread(work)

    async def collect(self, pieces: Iterable[tuple[Callable[[], T], int]]) -> list[T]:
        """Runs pieces of work, given with their sizes, sequentially."""
        return [await self.run(work, size=size) for work, size in pieces]

    async def next_of(self, pieces: Iterator[T], *, size: int) -> T | None:
        """Returns the next item of an iterator that works to produce it; None at the end."""
        return await self.run(lambda: next(pieces, None), size=size)

    def close(self) -> None:
        """Stops the threads. Work that has not started is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
