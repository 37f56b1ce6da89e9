"""Lifecycle: whether the server accepts generation requests, and how many it is answering."""

from __future__ import annotations

import asyncio

__all__ = ["Lifecycle"]


class Lifecycle:
    """Counts requests in flight, and records the start of a drain. Use it only on the event loop."""

    def __init__(self) -> None:
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        """Whether a drain has started, so that new generation requests are refused."""
        return self._draining

    @property
    def in_flight(self) -> int:
        """The number of generation requests whose response is not complete."""
        return self._in_flight

    def begin_drain(self) -> None:
        """Starts the drain: new generation requests are refused."""
        self._draining = True

    def enter(self) -> None:
        """Counts a generation request that has arrived."""
        self._in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Counts out a generation request that was answered or whose client left."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request is in flight. Returns False after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
