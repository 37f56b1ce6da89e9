"""The errors that clients see: which exception gets which status, and the JSON body in the format of OpenAI.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ryzjax.errors import (
    AdapterConflictError,
    AdapterNotFoundError,
    EngineFailedError,
    EngineStoppedError,
    ModelNotFoundError,
    QueueFullError,
    RequestError,
)

__all__ = [
    "ApiError",
    "GenerationFailedError",
    "LoraUpdatingDisabledError",
    "describe",
    "error_response",
    "install_error_handlers",
    "internal_error",
]

_MAX_MESSAGE_CHARS = 1000
_ENGINE_RETRY_AFTER_S = 5


class LoraUpdatingDisabledError(Exception):
    """This server does not load or unload adapters over HTTP (HTTP 403)."""


class GenerationFailedError(Exception):
    """The engine ended a request with an error or aborted it (HTTP 500). The log has the cause."""


@dataclass(frozen=True, kw_only=True)
class ApiError:
    """An error as a client sees it.

    Attributes:
      status: The HTTP status.
      message: A description for people.
      type: The class of the error, as OpenAI names it.
      param: The request field at fault; None if there is none.
      code: A name of the error for programs.
      headers: Additional response headers.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Returns the JSON object, which is also the payload of an SSE error event."""
        message = self.message
        if len(message) > _MAX_MESSAGE_CHARS:
            message = message[:_MAX_MESSAGE_CHARS] + "..."
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


def describe(error: Exception) -> ApiError | None:
    """Returns the error that a client sees; None for a bug of the server, which must be hidden behind a 500."""
    if isinstance(error, LoraUpdatingDisabledError):
        message = "adapters are not loaded or unloaded over HTTP here; start the server with --allow-lora-updating"
        return ApiError(status=403, message=message, type="permission_error", code="lora_updating_disabled")
    if isinstance(error, AdapterConflictError):
        return ApiError(
            status=409, message=str(error), type="invalid_request_error", param=error.param, code=error.code
        )
    if isinstance(error, (ModelNotFoundError, AdapterNotFoundError)):
        return ApiError(
            status=404, message=str(error), type="invalid_request_error", param=error.param, code=error.code
        )
    if isinstance(error, RequestError):
        return ApiError(
            status=400, message=str(error), type="invalid_request_error", param=error.param, code=error.code
        )
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(error.retry_after_s)}
        return ApiError(status=429, message=str(error), type="rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, EngineStoppedError):
        headers = {"retry-after": str(_ENGINE_RETRY_AFTER_S)}
        # The cause of a failure may contain paths and the like, so it appears only in the log.
        has_failed = isinstance(error, EngineFailedError)
        message = "the engine has failed; the server must be restarted" if has_failed else str(error)
        return ApiError(status=503, message=message, type="service_unavailable", code="engine_stopped", headers=headers)
    if isinstance(error, GenerationFailedError):
        return ApiError(status=500, message=str(error), type="server_error", code="generation_failed")
    return None


def internal_error(request_id: str) -> ApiError:
    """Returns a 500 that names only the request id under which the cause was logged."""
    message = f"internal error; the server's log has it under request id {request_id}"
    return ApiError(status=500, message=message, type="server_error", code="internal_error")


def error_response(error: ApiError) -> Response:
    """Returns the HTTP response of `error`."""
    return Response(error.body(), error.status, headers=dict(error.headers), media_type="application/json")


async def _on_known_error(request: Request, error: Exception) -> Response:
    described = describe(error)
    if described is None:
        raise error
    return error_response(described)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = f"no route {request.method} {request.url.path[:200]}", "not_found"
    elif error.status_code == 405:
        message, code = f"{request.url.path[:200]} does not take {request.method}", "method_not_allowed"
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return error_response(
        ApiError(status=error.status_code, message=message, type=kind, code=code, headers=error.headers or {})
    )


def install_error_handlers(app: FastAPI) -> None:
    """Makes the application answer known errors with their status.

    Unknown errors reach the outermost middleware, which answers 500.
    """
    for known in (
        RequestError,
        QueueFullError,
        EngineStoppedError,
        GenerationFailedError,
        LoraUpdatingDisabledError,
    ):
        app.add_exception_handler(known, _on_known_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
