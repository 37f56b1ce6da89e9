"""Whether the server takes generation requests, and how many it is answering."""

from __future__ import annotations

import asyncio

__all__ = ["Lifecycle"]


class Lifecycle:
    """Counts requests in flight and remembers that a drain has begun. Used on the event loop only."""

    def __init__(self) -> None:
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        """Whether new generation requests are refused for good."""
        return self._draining

    @property
    def in_flight(self) -> int:
        """Generation requests whose response has not been sent whole."""
        return self._in_flight

    def begin_drain(self) -> None:
        """Refuses new generation requests from now on."""
        self._draining = True

    def enter(self) -> None:
        """A generation request came in."""
        self._in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """A generation request was answered, or its client left."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until nothing is in flight; False where that took longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
