"""Reads request bodies whole before the routes see a request, under deadlines and in a bounded amount of memory.

A request whose body has not arrived has not started. It does not delay a drain, and it can be ended at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.disconnect import ClientLeftError
from ryzjax.serving.http.errors import ApiError, error_response

__all__ = ["BodyMiddleware", "BodyReaders", "ReceivedBody", "body_of"]

SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size do not count towards the memory for bodies, because the number of connections bounds them."""
_STALLED_S = 1.0
_POLL_S = 0.1


class _RefusedError(Exception):
    """A body was not read to its end. `error` is the answer to the request."""

    def __init__(self, error: ApiError):
        super().__init__(error.message)
        self.error = error


class _Reader:
    """A body that is being read."""

    def __init__(self, timer: asyncio.Timeout, now_s: float):
        self._timer = timer
        self.last_progress_s = now_s
        self.reserved_bytes = 0
        self.waits_for_room = False
        self.ended_by: ApiError | None = None

    def end(self, error: ApiError) -> None:
        """Stops reading and answers the request with `error`."""
        if self.ended_by is None and not self._timer.expired():
            self.ended_by = error
            self._timer.reschedule(0.0)


class BodyReaders:
    """The bodies that are being read or parsed, and the memory that they share. Use it only on the event loop.

    Args:
      capacity_bytes: The memory of all large bodies together. Also an attribute.
    """

    def __init__(self, capacity_bytes: int):
        self.capacity_bytes = capacity_bytes
        self._reserved_bytes = 0
        self._readers: set[_Reader] = set()

    @property
    def reserved_bytes(self) -> int:
        """The memory that large bodies hold or have reserved, in bytes."""
        return self._reserved_bytes

    def end_all(self, error: ApiError) -> None:
        """Ends every request whose body has not arrived completely, with `error` as the answer."""
        for reader in tuple(self._readers):
            reader.end(error)

    async def reserve(self, reader: _Reader, size_bytes: int) -> None:
        """Waits until there is room for a large body, at most until the deadline of its reader.

        A body that has made no progress for a second loses its room to a waiting one.
        """
        loop = asyncio.get_running_loop()
        size_bytes = min(size_bytes, self.capacity_bytes)
        reader.waits_for_room = True
        while self._reserved_bytes + size_bytes > self.capacity_bytes:
            holders = [other for other in self._readers if other.reserved_bytes and other.ended_by is None]
            slowest = min(holders, key=lambda other: other.last_progress_s, default=None)
            if slowest is not None and loop.time() - slowest.last_progress_s >= _STALLED_S:
                slowest.end(_TOO_SLOW)
            await asyncio.sleep(_POLL_S)
        reader.waits_for_room = False
        reader.reserved_bytes = size_bytes
        self._reserved_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Releases memory that a reader has reserved."""
        self._reserved_bytes -= size_bytes

    def enter(self, reader: _Reader) -> None:
        """Adds a body whose reading starts."""
        self._readers.add(reader)

    def leave(self, reader: _Reader) -> None:
        """Removes a body whose reading has ended."""
        self._readers.discard(reader)


class ReceivedBody:
    """A complete body. Call `release` after parsing it, which frees its memory for other bodies."""

    def __init__(self, content: bytes, readers: BodyReaders, reserved_bytes: int):
        self.content = content
        self._readers = readers
        self._reserved_bytes = reserved_bytes

    def release(self) -> None:
        """Drops the content. Further calls do nothing."""
        self.content = b""
        self._readers.release(self._reserved_bytes)
        self._reserved_bytes = 0


def body_of(request: Request) -> ReceivedBody:
    """Returns the body of a request, which `BodyMiddleware` has read."""
    body = request.state.body
    assert isinstance(body, ReceivedBody)
    return body


_TOO_SLOW = ApiError(
    status=408,
    message="the body of the request stopped arriving, and its place was needed; send it again",
    type="invalid_request_error",
    code="request_timeout",
    headers={"connection": "close"},
)

_NO_ROOM = ApiError(
    status=503,
    message="the memory for large bodies (max_buffered_bytes) is in use by other requests; try again",
    type="service_unavailable",
    code="bodies_full",
    headers={"connection": "close", "retry-after": "1"},
)


class BodyMiddleware:
    """Reads the body of a request into `request.state.body` before the routes see the request.

    A body over the limit is refused with 413, because of its Content-Length or while it is read. A body that arrives
    too slowly is refused with 408.

    Args:
      app: The application behind this middleware.
      config: The limits.
      readers: The bodies of ordinary requests.
      larger: Bodies by a prefix of the request's path. They may be as large as the capacity of their `BodyReaders`.
    """

    def __init__(self, app: ASGIApp, *, config: HttpConfig, readers: BodyReaders, larger: Mapping[str, BodyReaders]):
        self._app = app
        self._config = config
        self._readers = readers
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, readers, setting = self._config.max_body_bytes, self._readers, "max_body_bytes"
        for prefix, own in self._larger.items():
            if scope["path"].startswith(prefix):
                limit, readers, setting = own.capacity_bytes, own, "max_adapter_bytes"
        try:
            body = await self._read(scope, receive, limit, readers, setting)
        except _RefusedError as refused:
            await error_response(refused.error)(scope, receive, send)
            return
        except ClientLeftError:
            return
        scope.setdefault("state", {})["body"] = body
        try:
            await self._app(scope, receive, send)
        finally:
            body.release()

    async def _read(
        self, scope: Scope, receive: Receive, limit: int, readers: BodyReaders, setting: str
    ) -> ReceivedBody:
        declared = Headers(scope=scope).get("content-length", "")
        size_bytes = int(declared) if declared.isascii() and declared.isdigit() and len(declared) <= 18 else None
        if (size_bytes is None and declared) or (size_bytes is not None and size_bytes > limit):
            raise _RefusedError(_too_large(limit, setting))
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        chunks: list[bytes] = []
        received_bytes = 0
        timer = asyncio.timeout_at(started_s + self._config.body_timeout_s)
        reader = _Reader(timer, started_s)
        readers.enter(reader)
        is_whole = False
        try:
            async with timer:
                if size_bytes is not None and size_bytes > SMALL_BODY_BYTES:
                    await readers.reserve(reader, size_bytes)
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    received_bytes += len(chunk)
                    if received_bytes > limit:
                        raise _RefusedError(_too_large(limit, setting))
                    if not message.get("more_body", False):
                        break
                    if received_bytes > SMALL_BODY_BYTES and not reader.reserved_bytes:
                        await readers.reserve(reader, limit)  # sent in chunks, so its length is unknown
                    if reader.ended_by is None and not timer.expired():
                        reader.last_progress_s = loop.time()
                        extra_s = received_bytes / self._config.min_body_bytes_per_s
                        timer.reschedule(started_s + self._config.body_timeout_s + extra_s)
            is_whole = True
        except TimeoutError:
            timed_out = _NO_ROOM if reader.waits_for_room else self._too_slow()
            raise _RefusedError(reader.ended_by or timed_out) from None
        finally:
            readers.leave(reader)
            if not is_whole:
                readers.release(reader.reserved_bytes)
        return ReceivedBody(chunks[0] if len(chunks) == 1 else b"".join(chunks), readers, reader.reserved_bytes)

    def _too_slow(self) -> ApiError:
        return ApiError(
            status=408,
            message=f"the body of the request did not arrive within {self._config.body_timeout_s:g} s "
            f"(body_timeout_s) and a second for every {self._config.min_body_bytes_per_s} bytes "
            "(min_body_bytes_per_s); send it faster, or in smaller requests",
            type="invalid_request_error",
            code="request_timeout",
            headers={"connection": "close"},
        )


def _too_large(limit: int, setting: str) -> ApiError:
    return ApiError(
        status=413,
        message=f"the body is larger than {limit} bytes; shorten it, or raise {setting}",
        type="invalid_request_error",
        code="body_too_large",
        # The rest of the body is not read, so the connection cannot serve another request.
        headers={"connection": "close"},
    )
