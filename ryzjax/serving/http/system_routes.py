"""The routes /v1/models, /health, /ready, /metrics and /version."""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ryzjax.lora.base_name import base_name
from ryzjax.serving.http.context import ServerContext, context_of
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["router"]

router = APIRouter()

_STARTED_S = int(time.time())
_READ = ["GET", "HEAD"]
"""Methods of every route here. Load balancers probe with HEAD, whose answer has no body."""


def _model_card(context: ServerContext) -> dict[str, object]:
    certificate = context.engine.certificate
    quantization: dict[str, object] = {}
    if certificate is not None:
        base = certificate.get("base_model")
        # Clients see the name, not the path on the server.
        named = {"base_model": base_name(base)} if isinstance(base, str) else {}
        quantization = {"quantization": {**certificate, **named}}
    return quantization | {
        "id": context.model_name,
        "object": "model",
        "created": _STARTED_S,
        "owned_by": "ryzjax",
        "max_model_len": context.engine.max_context_tokens,
    }


def _adapter_card(context: ServerContext, adapter: ServedAdapter) -> dict[str, object]:
    return {
        "id": adapter.name,
        "object": "model",
        "created": adapter.created_s,
        "owned_by": "ryzjax",
        # Clients see the name, not the path on the server.
        "root": Path(adapter.root).name,
        "parent": context.model_name,
        "max_model_len": context.engine.max_context_tokens,
        "lora_rank": adapter.rank,
    }


@router.api_route("/v1/models", methods=_READ)
async def models(request: Request) -> Response:
    """Lists the model, and the adapters that requests may name instead of it."""
    context = context_of(request)
    adapters = [_adapter_card(context, adapter) for adapter in context.engine.adapters]
    return JSONResponse({"object": "list", "data": [_model_card(context), *adapters]})


@router.api_route("/v1/models/{model:path}", methods=_READ)
async def model(request: Request, model: str) -> Response:
    """Returns the model or adapter of that name, or 404."""
    context = context_of(request)
    name = context.adapter_of(model)
    found = [adapter for adapter in context.engine.adapters if adapter.name == name]
    return JSONResponse(_adapter_card(context, found[0]) if found else _model_card(context))


@router.api_route("/health", methods=_READ)
async def health(request: Request) -> Response:
    """Answers 200 while the engine is alive, even if it starts or drains, else 503: restart the server."""
    if context_of(request).engine.is_healthy:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "failed"}, 503)


@router.api_route("/ready", methods=_READ)
async def ready(request: Request) -> Response:
    """Answers 200 while the server accepts new requests, else 503: send them to another server."""
    context = context_of(request)
    if context.lifecycle.is_draining:
        status = "draining"
    elif not context.engine.is_healthy:
        status = "failed"
    elif not context.engine.is_ready:
        status = "starting"
    else:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": status}, 503, {"retry-after": str(context.config.retry_after_s)})


@router.api_route("/metrics", methods=_READ)
async def metrics(request: Request) -> Response:
    """Returns the metrics of the engine in the format of Prometheus."""
    context = context_of(request)
    context.metrics.set_healthy(context.engine.is_healthy)
    body, content_type = context.metrics.render()
    return Response(body, headers={"content-type": content_type})


@router.api_route("/version", methods=_READ)
async def version() -> Response:
    """Returns the version of the server."""
    return JSONResponse({"version": _version()})


def _version() -> str:
    try:
        return importlib.metadata.version("ryzjax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a checkout that was never installed
