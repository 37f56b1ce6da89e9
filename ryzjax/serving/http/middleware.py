"""Pure ASGI middleware, outermost first: request context, API key, body limit, drain gate.

Pure ASGI and not Starlette's BaseHTTPMiddleware: that one hides disconnects from the routes and copies every chunk of
a stream through a queue.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ryzjax.serving.http.errors import ApiError, error_response, internal_error
from ryzjax.serving.http.frontend_protocol import EngineFrontend
from ryzjax.serving.http.lifecycle import Lifecycle

__all__ = ["ApiKeyMiddleware", "BodyLimitMiddleware", "DrainGateMiddleware", "RequestContextMiddleware"]

logger = logging.getLogger(__name__)

_OPEN_PATHS = frozenset({"/health", "/ready"})
_MAX_REQUEST_ID_CHARS = 128
_UNSAFE_ID_CHARS = re.compile(r"[^A-Za-z0-9._:-]")


def _request_id(headers: Headers) -> str:
    # What a client sends ends up in logs and in a response header: only harmless characters stay.
    given = _UNSAFE_ID_CHARS.sub("", headers.get("x-request-id", "")[:_MAX_REQUEST_ID_CHARS])
    return given or uuid.uuid4().hex


class RequestContextMiddleware:
    """Gives each request an id, returns it as `X-Request-Id`, logs the access, and turns any bug into a plain 500."""

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
    """Demands the key on every path but /health and /ready, known or unknown: denial is the default."""

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
        # In constant time: how long a refusal takes must not tell how much of the key was right.
        given = f"{scheme.lower()} {key}".encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._expected)


class _BodyTooLargeError(Exception):
    """The body passed the limit while it was being read."""


class BodyLimitMiddleware:
    """Refuses bodies over `max_body_bytes` with 413: by Content-Length, and while reading where there is none.

    `larger` has the limits of paths that begin otherwise: prefix -> bytes.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, larger: Mapping[str, int]):
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = next(
            (n for prefix, n in self._larger.items() if scope["path"].startswith(prefix)), self._max_body_bytes
        )
        length = Headers(scope=scope).get("content-length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
            await error_response(self._too_large(limit))(scope, receive, send)
            return
        received_bytes = 0
        response_started = False

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > limit:
                    raise _BodyTooLargeError
            return message

        async def send_noted(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self._app(scope, receive_counted, send_noted)
        except _BodyTooLargeError:
            if response_started:
                raise
            await error_response(self._too_large(limit))(scope, receive, send)

    def _too_large(self, limit: int) -> ApiError:
        setting = "max_body_bytes" if limit == self._max_body_bytes else "max_adapter_bytes"
        return ApiError(
            status=413,
            message=f"the body is larger than {limit} bytes; shorten it, or raise {setting}",
            type="invalid_request_error",
            code="body_too_large",
            # The rest of the body stays unread, so the connection cannot serve another request.
            headers={"connection": "close"},
        )


class DrainGateMiddleware:
    """Counts generation requests until their last byte is sent, and refuses new ones (503) unless the engine is up."""

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
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal()
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.leave()

    def _refusal(self) -> ApiError | None:
        if self._lifecycle.is_draining:
            message, code = "the server is shutting down and takes no new request; send it to another", "draining"
        elif not self._engine.is_healthy:
            message, code = "the engine has failed; restart the server", "engine_failed"
        elif not self._engine.is_ready:
            message, code = "the engine is not ready yet; try again", "not_ready"
        else:
            return None
        # The body stays unread: close.
        headers = {"retry-after": str(self._retry_after_s), "connection": "close"}
        return ApiError(status=503, message=message, type="service_unavailable", code=code, headers=headers)
