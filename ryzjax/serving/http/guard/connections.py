"""Bounds the number of connections, and the time for which each one may make the server wait.

uvicorn waits forever for the headers of a request and for a client that does not read its answer. `GuardedProtocol`
adds deadlines to the three states of a connection:

    waiting   no request is being answered: nothing has arrived, or only a part of the headers. The connection is
              closed after `header_timeout_s`, or earlier if a new connection needs its place.
    working   a request is being read or answered. Such a connection is never closed to make room.
    stalled   the client does not read its answer. The connection is cut after `send_timeout_s`.

A client that closes its sending side after a whole request still gets its answer. A client that has left looks the
same at first, so the server sends interim responses (`100 Continue`) until the answer begins: the kernel of a client
that has left resets the connection, and the request is aborted.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.errors import ApiError

__all__ = ["ConnectionGuard", "GuardedProtocol"]

logger = logging.getLogger(__name__)

_SWEEP_S = 0.5
_FIRST_PROBE_S = 0.1
_LAST_PROBE_S = 5.0
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ConnectionGuard:
    """The connections of one server. Use it only on the event loop.

    Args:
      config: The limits.
    """

    def __init__(self, config: HttpConfig):
        self.max_connections = config.max_connections
        self.header_timeout_s = config.header_timeout_s
        self.keep_alive_timeout_s = config.keep_alive_timeout_s
        self.send_timeout_s = config.send_timeout_s
        # Waiting connection -> the time at which it is closed, in the order in which they started to wait.
        self._waiting: dict[GuardedProtocol, float] = {}
        self._working: set[GuardedProtocol] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def num_connections(self) -> int:
        """The number of open connections."""
        return len(self._waiting) + len(self._working)

    def admit(self, connection: GuardedProtocol, loop: asyncio.AbstractEventLoop) -> bool:
        """Admits a new connection. At the limit, it closes the connection that has waited longest.

        Returns:
          False if every connection is working, so that the new one must be refused.
        """
        if self.num_connections >= self.max_connections:
            if not self._waiting:
                return False
            oldest = next(iter(self._waiting))
            self.forget(oldest)
            oldest.transport.close()
        self._waiting[connection] = loop.time() + self.header_timeout_s
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep, loop)
        return True

    def update(self, connection: GuardedProtocol) -> None:
        """Records whether an admitted connection is now waiting or working."""
        if connection.is_working:
            if self._waiting.pop(connection, None) is not None:
                self._working.add(connection)
        elif connection in self._working:
            self._working.remove(connection)
            # uvicorn closes it after `keep_alive_timeout_s` unless the next request begins to arrive.
            allowed_s = self.keep_alive_timeout_s + self.header_timeout_s
            self._waiting[connection] = connection.loop.time() + allowed_s

    def forget(self, connection: GuardedProtocol) -> None:
        """Removes a closed connection."""
        self._waiting.pop(connection, None)
        self._working.discard(connection)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in [connection for connection, end_s in self._waiting.items() if end_s <= now_s]:
            self.forget(connection)
            connection.time_out()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep, loop) if self.num_connections else None


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with the deadlines of a `ConnectionGuard`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        guard: ConnectionGuard,
    ):
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._stall_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._is_half_closed = False

    @property
    def is_working(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Registers the connection, or refuses it with 503 if there is no place for it."""
        super().connection_made(transport)
        if not self._guard.admit(self, self.loop):
            limit = self._guard.max_connections
            logger.warning("connection refused", extra={"max_connections": limit})
            self._close_with(
                503,
                ApiError(
                    status=503,
                    message=f"all {limit} connections of this server are in use (max_connections={limit}); try again",
                    type="service_unavailable",
                    code="too_many_connections",
                ),
            )

    def data_received(self, data: bytes) -> None:
        """Handles data from the client."""
        super().data_received(data)
        self._guard.update(self)

    def on_response_complete(self) -> None:
        """Waits for the next request, or answers one that has arrived meanwhile."""
        super().on_response_complete()
        self._guard.update(self)

    def eof_received(self) -> bool:
        """Keeps the connection open for the answer to a complete request; closes it otherwise."""
        if self._is_half_closed:
            return True  # reading was paused and resumed
        cycle = self.cycle
        if not self.is_working or cycle.more_body or cycle.response_started:
            return False
        if self.scope["http_version"] != "1.1":
            return False  # HTTP/1.0 has no interim responses
        self._is_half_closed = True
        cycle.keep_alive = False
        self._probe(_FIRST_PROBE_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection. Its request is aborted."""
        self._guard.forget(self)
        for timer in (self._stall_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Starts the deadline of `send_timeout_s`, because the client does not read."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._guard.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops the deadline, because the client reads again."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def time_out(self) -> None:
        """Closes a connection that has waited too long, with a 408 if a part of a request has arrived."""
        received, _ = self.conn.trailing_data
        if not received:
            self.transport.close()
            return
        limit_s = self._guard.header_timeout_s
        self._close_with(
            408,
            ApiError(
                status=408,
                message=f"the headers of the request did not arrive within {limit_s:g} s (header_timeout_s); send "
                "them faster",
                type="invalid_request_error",
                code="request_timeout",
            ),
        )

    def _close_with(self, status: int, error: ApiError) -> None:
        body = error.body()
        phrase = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {phrase}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _probe(self, wait_s: float) -> None:
        self._probe_timer = None
        if self.is_working and not self.cycle.response_started and not self.transport.is_closing():
            self.transport.write(_PROBE)
            self._probe_timer = self.loop.call_later(wait_s, self._probe, min(2 * wait_s, _LAST_PROBE_S))
