"""ASGI middleware. From the outermost: request context, API key, drain gate, (`bodies`), requests in flight.

Starlette's BaseHTTPMiddleware is not used, because it hides disconnects from the routes and copies every chunk of a
stream through a queue.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.errors import ApiError, error_response, internal_error
from ryzjax.serving.http.guard.lifecycle import Lifecycle

__all__ = [
    "SHUTTING_DOWN",
    "ApiKeyMiddleware",
    "DrainGateMiddleware",
    "InFlightMiddleware",
    "RequestContextMiddleware",
]

logger = logging.getLogger(__name__)

_OPEN_PATHS = frozenset({"/health", "/ready"})
_MAX_REQUEST_ID_CHARS = 128
SHUTTING_DOWN = ApiError(
    status=503,
    message="the server is shutting down and takes no new request; send it to another",
    type="service_unavailable",
    code="draining",
    headers={"connection": "close"},
)
_UNSAFE_ID_CHARS = re.compile(r"[^A-Za-z0-9._:-]")


def _request_id(headers: Headers) -> str:
    # The id appears in logs and in a response header, so only harmless characters of the client's id are kept.
    given = _UNSAFE_ID_CHARS.sub("", headers.get("x-request-id", "")[:_MAX_REQUEST_ID_CHARS])
    return given or uuid.uuid4().hex


class RequestContextMiddleware:
    """Gives each request an id, returns it as `X-Request-Id`, logs the access, and answers unknown errors with 500."""

    def __init__(self, app: ASGIApp, *, access_log: bool):
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started_s = time.monotonic()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server cancels requests only when it exits without waiting for them.
            if status is not None:
                raise
            await error_response(SHUTTING_DOWN)(scope, receive, send_with_id)
        except Exception:  # the last line of defence: one request's bug must not reach its neighbours or the client
            logger.exception("request failed", extra={"request_id": request_id, "path": scope["path"]})
            if status is not None:
                raise  # too late for a status: the server cuts the connection
            await error_response(internal_error(request_id))(scope, receive, send_with_id)
        finally:
            if self._access_log:
                fields = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - started_s, 4),
                }
                logger.info("request", extra=fields)


class ApiKeyMiddleware:
    """Requires the key on every path but /health and /ready, even on unknown paths."""

    def __init__(self, app: ASGIApp, *, api_key: str):
        self._app = app
        self._expected = f"bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in _OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and self._is_allowed(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no protocol but HTTP is served; got {scope['type']}")
        error = ApiError(
            status=401,
            message="a valid API key is needed; send it as `Authorization: Bearer <key>`",
            type="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, send)

    def _is_allowed(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        # The comparison takes constant time, so that the time of a refusal does not tell how much of the key is right.
        given = f"{scheme.lower()} {key}".encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._expected)


class DrainGateMiddleware:
    """Refuses generation requests with 503 before their bodies are read, unless the engine accepts requests."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: EngineFrontend,
        lifecycle: Lifecycle,
        paths: frozenset[str],
        retry_after_s: int,
    ):
        self._app = app
        self._engine = engine
        self._lifecycle = lifecycle
        self._paths = paths
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_generation(scope, self._paths):
            refusal = self._refusal()
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self) -> ApiError | None:
        # The connection must close, because the body is not read.
        headers = {"retry-after": str(self._retry_after_s), "connection": "close"}
        if self._lifecycle.is_draining:
            return replace(SHUTTING_DOWN, headers=headers)
        if not self._engine.is_healthy:
            message, code = "the engine has failed; restart the server", "engine_failed"
        elif not self._engine.is_ready:
            message, code = "the engine is not ready yet; try again", "not_ready"
        else:
            return None
        return ApiError(status=503, message=message, type="service_unavailable", code=code, headers=headers)


class InFlightMiddleware:
    """Counts generation requests from the arrival of their complete body until their last byte is sent."""

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle, paths: frozenset[str]):
        self._app = app
        self._lifecycle = lifecycle
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_generation(scope, self._paths):
            await self._app(scope, receive, send)
            return
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.leave()


def _is_generation(scope: Scope, paths: frozenset[str]) -> bool:
    return scope["type"] == "http" and scope["path"] in paths and scope["method"] == "POST"
