"""Work that stops when its client leaves."""

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
    """Runs `work`, and cancels it when the client leaves.

    Args:
      receive: the request's ASGI receive, its body already read.
      work: what to run; it has ended, cleaned up, when this returns or raises.

    Raises:
      ClientLeftError: where the client left first.
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
