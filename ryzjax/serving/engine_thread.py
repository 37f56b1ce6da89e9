"""EngineThread: the engine's own thread. Callers post frozen messages in and get batches of events back."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ryzjax.serving.adapter import ServedAdapter
from ryzjax.serving.engine import Engine
from ryzjax.serving.request import EngineRequest, TokenEvent

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
    """Runs an engine until stopped.

    Args:
      engine: used by this thread alone once started.
      deliver: gets the events of each step, on this thread; must not block.
      on_failure: told, once, the exception that ended the engine.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Callable[[list[TokenEvent]], None],
        on_failure: Callable[[BaseException], None],
    ):
        self._engine = engine
        self._deliver = deliver
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[EngineRequest | _Abort | _Prefetch | _Retire | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop after the current step and waits for the thread."""
        self._inbox.put(_Stop())
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def submit(self, request: EngineRequest) -> None:
        """Queues a request; its events follow through `deliver`."""
        self._inbox.put(request)

    def abort(self, request_id: str) -> None:
        """Ends a request; no event follows. Unknown ids are ignored."""
        self._inbox.put(_Abort(request_id))

    def prefetch(self, adapter: ServedAdapter) -> None:
        """Has an adapter written into an empty slot between two steps, if there is one."""
        self._inbox.put(_Prefetch(adapter))

    def retire(self, adapter: ServedAdapter) -> None:
        """Says that no new request names this version."""
        self._inbox.put(_Retire(adapter))

    def _run(self) -> None:
        try:
            while self._take_messages():
                events = self._engine.step()
                if events:
                    self._deliver(events)
        except BaseException as error:  # the thread's last frame: whatever it is, callers must hear of it
            _log.exception("the engine failed")
            self._engine.metrics.set_healthy(False)
            self._on_failure(error)

    def _take_messages(self) -> bool:
        """Handles what is in the inbox, waiting for a message if there is no work; False to stop."""
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
