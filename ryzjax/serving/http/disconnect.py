"""until_disconnect: runs work and cancels it when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.types import Receive

__all__ = ["ClientLeftError", "until_disconnect"]

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed the connection before its answer was complete."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """Runs `work` and cancels it when the client leaves.

    Args:
      receive: The ASGI receive of the request, whose body has been read.
      work: The coroutine to run. It has ended and cleaned up when this function returns or raises.

    Raises:
      ClientLeftError: The client left before the work ended.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
