"""Listeners: the receivers of each request's events. The threads of callers and the engine's thread share it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from ryzjax.errors import EngineStoppedError, QueueFullError, RequestError
from ryzjax.serving.messages.request import EngineRequest, TokenEvent

__all__ = ["Listener", "Listeners", "LoopListener", "ThreadListener"]

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """A caller's queue of events."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on which `put` must run, or None if any thread may call it."""
        ...

    def put(self, event: TokenEvent) -> None:
        """Adds an event to the queue. It must not block."""
        ...


class LoopListener:
    """The queue of a coroutine. Create it on the coroutine's event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()

    def put(self, event: TokenEvent) -> None:
        """Adds an event to the queue."""
        self._events.put_nowait(event)

    async def get(self) -> TokenEvent:
        """Returns the next event."""
        return await self._events.get()


class ThreadListener:
    """The queue of a thread that waits without an event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()

    def put(self, event: TokenEvent) -> None:
        """Adds an event to the queue."""
        self._events.put(event)

    def get(self) -> TokenEvent:
        """Returns the next event. On the main thread, a signal handler interrupts the wait."""
        return self._events.get()


class Listeners:
    """The open requests and their listeners.

    A request is open until its caller closes it or drops its listener. Listeners are held weakly, so that a caller who
    is interrupted, or whose event loop is closed, leaves no request behind.

    Args:
      max_open: the most requests that may be open at once.
      retry_after_s: returns the seconds that a refused caller should wait.

    Attributes:
      lock: held around `add` or `remove` together with the message to the engine's thread, so that the engine sees both
        in the same order. It is reentrant, because the garbage collector may close a stream, and so remove its
        requests, on a thread that holds the lock.
    """

    def __init__(self, *, max_open: int, retry_after_s: Callable[[], int]):
        self.lock = threading.RLock()
        self.max_open = max_open
        self._retry_after_s = retry_after_s
        self._by_id: weakref.WeakValueDictionary[str, Listener] = weakref.WeakValueDictionary()
        self._refusal: Callable[[], EngineStoppedError] | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def is_refusing(self) -> bool:
        """Whether `refuse` was called."""
        return self._refusal is not None

    def refuse(self, message: str, kind: type[EngineStoppedError] = EngineStoppedError) -> None:
        """Makes `add` raise an error with this message from now on. The first message stays."""
        with self.lock:
            self._refusal = self._refusal or partial(kind, message)

    def add(self, requests: Sequence[EngineRequest], listener: Listener) -> None:
        """Opens all requests or none.

        Raises:
          EngineStoppedError: `refuse` was called.
          QueueFullError: more than `max_open` requests would be open.
          RequestError: an id is in use.
        """
        with self.lock:
            if self._refusal is not None:
                raise self._refusal()
            if len(self._by_id) + len(requests) > self.max_open:
                raise QueueFullError(
                    f"{len(self._by_id)} requests are open, at most {self.max_open} fit; try again later",
                    retry_after_s=self._retry_after_s(),
                )
            for request in requests:
                if request.request_id in self._by_id:
                    raise RequestError(
                        f"request id {request.request_id!r} is in use; expected a new one", param="request_id"
                    )
            for request in requests:
                self._by_id[request.request_id] = listener

    def remove(self, request_id: str, listener: Listener) -> bool:
        """Closes a request of this listener. Returns False if it is not open or belongs to another listener."""
        with self.lock:
            is_open = self._by_id.get(request_id) is listener
            if is_open:
                del self._by_id[request_id]
            return is_open

    def deliver(self, events: Iterable[TokenEvent]) -> list[str]:
        """Passes events to their listeners, with one call for each event loop.

        A listener whose event loop is closed gets no more events. Other listeners are not affected.

        Returns:
          The ids of events without a listener. The engine should abort those requests.
        """
        by_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[Listener, TokenEvent]]] = defaultdict(list)
        unheard: list[str] = []
        for event in events:
            listener = self._by_id.get(event.request_id)
            if listener is None:
                unheard.append(event.request_id)
            else:
                by_loop[listener.loop].append((listener, event))
        for loop, pairs in by_loop.items():
            if not _put_in_loop(loop, pairs):
                for listener, event in pairs:
                    self.remove(event.request_id, listener)
                    unheard.append(event.request_id)
        return unheard

    def end_all(self, message: str, kind: type[EngineStoppedError] = EngineStoppedError) -> list[str]:
        """Closes every request with an error and returns their ids."""
        with self.lock:
            ended = dict(self._by_id)
            self._by_id.clear()
        for request_id, listener in ended.items():
            event = TokenEvent(request_id=request_id, finish_reason="error", error=kind(message))
            _put_in_loop(listener.loop, [(listener, event)])
        return list(ended)


def _put_in_loop(loop: asyncio.AbstractEventLoop | None, pairs: Sequence[tuple[Listener, TokenEvent]]) -> bool:
    """Puts events into their listeners' queues on the loop. Returns False if the loop takes no calls."""

    def put() -> None:
        for listener, event in pairs:
            listener.put(event)

    if loop is None:
        put()
        return True
    try:
        loop.call_soon_threadsafe(put)
    # The loop belongs to the caller and may be of any kind. Its errors must not end the engine. A closed loop raises
    # RuntimeError.
    except Exception as error:
        _log.warning("an event loop takes no more events (%r); its requests are aborted", error)
        return False
    return True
