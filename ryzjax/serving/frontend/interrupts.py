"""interruptible: Ctrl-C ends a blocking call, also one that holds up an event loop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt inside, where a handler of this thread's event loop would put it off.

    `asyncio.run` answers a first Ctrl-C by cancelling its task, which happens when control returns to the event loop:
    a call that blocks the loop would go on to its end. Off the main thread, without a running loop, and where the
    signal is ignored, nothing changes.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not _loop_runs() or not callable(previous):
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
