"""create_app: builds the ASGI application of the HTTP server over any `EngineFrontend`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.responses import Response

from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http import adapter_routes, system_routes
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.context import ServerContext
from ryzjax.serving.http.disconnect import ClientLeftError
from ryzjax.serving.http.errors import install_error_handlers
from ryzjax.serving.http.guard.bodies import BodyMiddleware
from ryzjax.serving.http.guard.middleware import (
    ApiKeyMiddleware,
    DrainGateMiddleware,
    InFlightMiddleware,
    RequestContextMiddleware,
)
from ryzjax.serving.http.openai import embedding_routes, generate_routes

__all__ = ["create_app"]

_CLIENT_CLOSED_REQUEST = 499
"""Status in the access log of a request whose client left; nginx uses the same number. No client receives it."""


def create_app(engine: EngineFrontend, config: HttpConfig, *, metrics: EngineMetrics) -> FastAPI:
    """Builds the application. It neither starts nor stops the engine, so a server may be up while its engine loads.

    Args:
      engine: The engine that answers requests.
      config: The limits and other settings of the server.
      metrics: The metrics of the engine, which /metrics shows.
    """
    context = ServerContext(engine, config, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.close()

    # FastAPI's documentation pages are off: they load scripts from a CDN, and they cannot describe the bodies, which
    # the routes parse themselves.
    app = FastAPI(
        title="RyzJAX",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would go to whatever host the request names.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.context = context
    app.include_router(system_routes.router)
    app.include_router(generate_routes.router)
    app.include_router(embedding_routes.router)
    app.include_router(adapter_routes.router)
    install_error_handlers(app)
    app.add_exception_handler(ClientLeftError, _on_client_left)
    generation = generate_routes.GENERATION_PATHS | embedding_routes.EMBEDDING_PATHS
    # The middleware that is added last is the outermost.
    app.add_middleware(InFlightMiddleware, lifecycle=context.lifecycle, paths=generation)
    large = {adapter_routes.ADAPTERS_PATH: context.adapter_bodies} if config.allow_lora_updating else {}
    app.add_middleware(BodyMiddleware, config=config, readers=context.bodies, larger=large)
    app.add_middleware(
        DrainGateMiddleware,
        engine=engine,
        lifecycle=context.lifecycle,
        paths=generation,
        retry_after_s=config.retry_after_s,
    )
    if config.api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=config.api_key)
    app.add_middleware(RequestContextMiddleware, access_log=config.access_log)
    return app


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
