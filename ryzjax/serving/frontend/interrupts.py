"""interruptible: lets Ctrl-C end a blocking call, even one that blocks an event loop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt at once, instead of when control returns to the event loop.

    `asyncio.run` handles the first Ctrl-C by cancelling its task, which takes effect when control returns to the event
    loop, so a call that blocks the loop would run to its end. Nothing changes on other threads than the main one,
    without a running loop, or if the signal is ignored.
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
