"""HttpServer: runs the application under uvicorn, and drains it on SIGTERM and SIGINT.

first signal    /ready answers 503. New generation requests, and those whose bodies have not arrived, get 503. Running
                requests have `drain_timeout_s` seconds to finish. Then connections close, with exit status 0.
second signal   Running requests end with an error immediately. The exit status is 128 + the signal's number.
third signal    The process exits immediately and answers nothing. The exit status is 128 + the signal's number.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from functools import partial
from types import FrameType

import uvicorn

from ryzjax.errors import ConfigError
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.app import create_app
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.context import ServerContext
from ryzjax.serving.http.guard.connections import ConnectionGuard, GuardedProtocol
from ryzjax.serving.http.guard.middleware import SHUTTING_DOWN

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

_CLOSE_CONNECTIONS_S = 1
"""How long open connections have to send their remaining output once the engine has drained, in seconds."""
_BACKLOG = 2048
_SWITCH_INTERVAL_S = 0.0005
"""How long a thread may hold Python's interpreter lock while another thread waits for it, in seconds. With the default
of 5 ms, one thread that parses or serializes delays every step of the engine by several times 5 ms."""


class _DrainingUvicorn(uvicorn.Server):
    """uvicorn's server, which drains the engine before it shuts down."""

    def __init__(self, config: uvicorn.Config, context: ServerContext):
        super().__init__(config)
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._forced_exit_task: asyncio.Task[None] | None = None
        self.up = threading.Event()
        self.forced_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._loop = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own handler is not called. It shuts down immediately and raises the signal again, which changes the
        # exit status.
        if self._loop is None or self.forced_by is not None:
            self.forced_by = sig
            self.should_exit = True
            self.force_exit = True
        elif self._context.lifecycle.is_draining:
            self.forced_by = sig
            self._loop.call_soon_threadsafe(self._start_forced_exit)
        else:
            self._context.lifecycle.begin_drain()
            self.request_drain()

    def request_drain(self) -> None:
        """Starts the drain, from any thread or a signal handler. Does nothing once the server is down."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        if self._drain_task is None:
            self._context.lifecycle.begin_drain()
            self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        lifecycle, timeout_s = self._context.lifecycle, self._context.config.drain_timeout_s
        started_s = time.monotonic()
        logger.info("draining", extra={"requests": lifecycle.in_flight, "timeout_s": timeout_s})
        for bodies in (self._context.bodies, self._context.adapter_bodies):
            bodies.end_all(SHUTTING_DOWN)
        try:
            left_s = 0.0
            if await lifecycle.wait_idle(timeout_s):
                left_s = max(0.0, timeout_s - (time.monotonic() - started_s))
            else:
                logger.warning("drain timed out", extra={"requests": lifecycle.in_flight})
            reason = f"the server shut down before the request was finished (drain_timeout_s={timeout_s:g})"
            await self._context.engine.drain(left_s, reason=reason)
        finally:
            self.should_exit = True

    def _start_forced_exit(self) -> None:
        if self._forced_exit_task is None:
            if self._drain_task is not None:
                self._drain_task.cancel()
            self._forced_exit_task = asyncio.create_task(self._forced_exit())

    async def _forced_exit(self) -> None:
        try:
            reason = "the server was told to exit before the request was finished"
            await self._context.engine.drain(0.0, reason=reason)
            await self._context.lifecycle.wait_idle(_CLOSE_CONNECTIONS_S)
        finally:
            self.should_exit = True
            self.force_exit = True


class HttpServer:
    """The HTTP server of one engine. The caller starts and stops the engine.

    Args:
      engine: The engine that answers requests. While it is not ready, generation requests get 503.
      config: The address to listen on and the limits of requests.
      metrics: The metrics of the engine. /metrics shows them.

    Raises:
      ConfigError: The server cannot listen on the address.
    """

    def __init__(self, engine: EngineFrontend, config: HttpConfig, *, metrics: EngineMetrics):
        app = create_app(engine, config, metrics=metrics)
        self._socket = _listen(config.host, config.port)
        uvicorn_config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
            timeout_keep_alive=config.keep_alive_timeout_s,  # pyright: ignore[reportArgumentType]  # any number of s
            http=partial(GuardedProtocol, guard=ConnectionGuard(config)),  # pyright: ignore[reportArgumentType]
        )
        self._server = _DrainingUvicorn(uvicorn_config, app.state.context)

    @property
    def host(self) -> str:
        """The address that the server listens on."""
        return str(self._socket.getsockname()[0])

    @property
    def port(self) -> int:
        """The port that the server listens on. It is the real port even if the config asks for port 0."""
        return int(self._socket.getsockname()[1])

    def run(self) -> int:
        """Serves until a signal or `request_drain`, and returns the exit status of the process.

        SIGTERM and SIGINT are handled if this is called on the main thread.
        """
        switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            sys.setswitchinterval(switch_interval_s)
            self._socket.close()
        return 0 if self._server.forced_by is None else 128 + self._server.forced_by

    def wait_until_up(self, timeout_s: float) -> bool:
        """Waits, on another thread, until the server answers connections. Returns False after `timeout_s` seconds."""
        return self._server.up.wait(timeout_s)

    def request_drain(self) -> None:
        """Starts a drain, as the first SIGTERM does. Any thread may call this once the server is up."""
        self._server.request_drain()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on host={host!r}, port={port}: {error.strerror or error}; choose another host or port"
        ) from error
