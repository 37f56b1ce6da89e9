"""EngineThread: the thread of the engine. Callers post frozen messages to it and get batches of events back."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ryzjax.errors import EngineFailedError, EngineStoppedError
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.engine.listeners import Listener, Listeners
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EngineRequest, TokenEvent

__all__ = ["EngineThread"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Prefetch:
    adapter: ServedAdapter


@dataclass(frozen=True, slots=True)
class _Retire:
    adapter: ServedAdapter


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class EngineThread:
    """Runs an engine until it is stopped or the interpreter exits.

    Args:
      engine: the engine. Only this thread uses it after `start`.
      listeners: the receivers of the events of each step. The thread closes them when it ends.
    """

    def __init__(self, engine: Engine, listeners: Listeners):
        self._engine = engine
        self._listeners = listeners
        self._inbox: queue.SimpleQueue[EngineRequest | _Abort | _Prefetch | _Retire | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: str | None = None
        """Why the engine failed, or None."""

    def start(self) -> None:
        """Starts the thread."""
        _started.add(self)
        self._thread.start()

    def request_stop(self) -> None:
        """Ends the loop after the current step without waiting for it. The garbage collector may call this method.

        It takes no lock, because `SimpleQueue.put` is reentrant.
        """
        self._inbox.put(_Stop())

    def stop(self) -> None:
        """Ends the loop after the current step and waits for the thread."""
        self.request_stop()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def submit(self, requests: Sequence[EngineRequest], listener: Listener) -> None:
        """Queues all requests or none. The listener gets their events. Raises what `Listeners.add` raises."""
        with self._listeners.lock:
            self._listeners.add(requests, listener)
            for request in requests:
                self._inbox.put(request)

    def close(self, request_id: str, listener: Listener, *, abort: bool) -> None:
        """Closes a request of this listener, and aborts it if `abort` is set. A request that is not open is ignored."""
        with self._listeners.lock:
            if self._listeners.remove(request_id, listener) and abort:
                self._inbox.put(_Abort(request_id))

    def abort_all(self, message: str) -> None:
        """Ends every open request with an EngineStoppedError."""
        with self._listeners.lock:
            for request_id in self._listeners.end_all(message):
                self._inbox.put(_Abort(request_id))

    def prefetch(self, adapter: ServedAdapter) -> None:
        """Writes an adapter into an empty slot between two steps, if there is one."""
        self._inbox.put(_Prefetch(adapter))

    def retire(self, adapter: ServedAdapter) -> None:
        """Retires a version of an adapter. No new request uses it."""
        self._inbox.put(_Retire(adapter))

    def _run(self) -> None:
        try:
            while self._take_messages():
                self._deliver(self._engine.step())
            self._engine.finish_in_flight()
            self._end("the engine was stopped")
        except BaseException as error:  # The last frame of the thread: callers must hear of every error.
            _log.exception("the engine failed")
            self._engine.metrics.set_healthy(False)
            self.failure = str(error)
            self._end(f"the engine failed: {error}; restart the server", EngineFailedError)

    def _end(self, message: str, kind: type[EngineStoppedError] = EngineStoppedError) -> None:
        self._listeners.refuse(message, kind)
        self._listeners.end_all(message, kind)

    def _deliver(self, events: Iterable[TokenEvent]) -> None:
        for request_id in self._listeners.deliver(events):
            self._engine.abort(request_id)

    def _take_messages(self) -> bool:
        """Handles the messages of the inbox, and waits for one if there is no work. Returns False to stop."""
        while True:
            try:
                message = self._inbox.get(block=not self._engine.has_work)
            except queue.Empty:
                return True
            if isinstance(message, EngineRequest):
                refusal = self._engine.add(message)
                if refusal is not None:
                    self._deliver([refusal])
            elif isinstance(message, _Abort):
                self._engine.abort(message.request_id)
            elif isinstance(message, _Prefetch):
                self._engine.prefetch_adapter(message.adapter)
            elif isinstance(message, _Retire):
                self._engine.retire_adapter(message.adapter)
            else:
                return False


_started: weakref.WeakSet[EngineThread] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Ends every engine thread before the interpreter and JAX's runtime are torn down.

    A daemon thread that still runs at that time is unwound inside C++ code, which aborts the process. This hook runs
    before JAX's own hook, which was registered earlier, because `engine` imports jax.
    """
    while threads := [thread for thread in _started if thread.is_alive]:
        try:
            for thread in threads:
                thread.request_stop()
            for thread in threads:
                thread.stop()
        except KeyboardInterrupt:
            continue  # A step takes moments, and leaving it running would abort the process.
