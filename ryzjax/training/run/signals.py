"""StopSignals: SIGTERM and SIGINT ask a run to stop after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the first SIGTERM or SIGINT only sets `stop_requested`. A second SIGINT interrupts at once.

    The previous handlers are restored at its end. Only the main thread of a process receives signals, so in other
    threads this has no effect.

    Args:
      on_request: Called with the name of the first signal ("SIGTERM"), inside the handler. Must be short.
    """

    def __init__(self, on_request: Callable[[str], None] | None = None):
        self._on_request = on_request
        self._previous: dict[signal.Signals, object] = {}
        self.signal_name: str | None = None
        """Name of the first signal; None before it."""

    @property
    def stop_requested(self) -> bool:
        """Whether a signal was received."""
        return self.signal_name is not None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None is a handler that was not set from Python, which could not be restored.
                if signal.getsignal(number) is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.stop_requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal_name = signal.Signals(number).name
        if self._on_request is not None:
            self._on_request(self.signal_name)
