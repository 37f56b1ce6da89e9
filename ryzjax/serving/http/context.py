"""ServerContext: what the routes share, such as the engine, the settings, the limits, and threads for large work."""

from __future__ import annotations

import asyncio
from functools import cached_property, partial
from typing import Protocol, Self, TypeVar

from fastapi import Request

from ryzjax.errors import ModelNotFoundError
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.guard.bodies import BodyReaders, body_of
from ryzjax.serving.http.guard.lifecycle import Lifecycle
from ryzjax.serving.http.guard.limits import RequestLimits
from ryzjax.serving.http.token_texts import TokenTexts
from ryzjax.serving.http.workers import Workers

__all__ = ["RequestBody", "ServerContext", "context_of", "request_id_of"]


class RequestBody(Protocol):
    """The body of a request that an API can parse, such as `JsonBody` of the OpenAI API."""

    @classmethod
    def parse(cls, content: bytes, limits: RequestLimits) -> Self:
        """Parses and checks a body. Raises RequestError where it is malformed or too large."""
        ...


Body = TypeVar("Body", bound=RequestBody)


class ServerContext:
    """The state of one application, stored as `app.state.context`.

    Args:
      engine: The engine that answers requests.
      config: The settings of the server.
      metrics: The metrics of the engine.
    """

    def __init__(self, engine: EngineFrontend, config: HttpConfig, metrics: EngineMetrics):
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.lifecycle = Lifecycle()
        self.loading = asyncio.Lock()
        self.token_texts = TokenTexts(engine.tokenizer)
        self.workers = Workers()
        self.bodies = BodyReaders(config.max_buffered_bytes)
        self.adapter_bodies = BodyReaders(config.max_adapter_bytes)

    @cached_property
    def limits(self) -> RequestLimits:
        """The limits on the parts of a request."""
        max_tokens = self.engine.max_context_tokens
        return RequestLimits(
            config=self.config,
            max_context_tokens=max_tokens,
            max_prompt_chars=self.engine.tokenizer.max_chars(max_tokens),
        )

    @property
    def model_name(self) -> str:
        """The name of the model for clients."""
        return self.config.served_model_name or self.engine.model_name

    @property
    def max_sequences_per_request(self) -> int:
        """The largest number of sequences that one request may start."""
        chosen = self.config.max_sequences_per_request
        return max(1, self.engine.max_open_sequences // 4) if chosen is None else chosen

    def adapter_of(self, model: str) -> str | None:
        """Returns the adapter that a request's `model` names; None for the model itself.

        Raises:
          ModelNotFoundError: Neither the model nor an adapter has this name.
        """
        if model == self.model_name:
            return None
        names = [adapter.name for adapter in self.engine.adapters]
        if model not in names:
            raise ModelNotFoundError(model, self.model_name, names)
        return model

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """Parses and checks the body of a request, then releases the memory of its bytes.

        Args:
          request: A request whose body `BodyMiddleware` has read.
          kind: The type of the body.

        Raises:
          RequestError: `kind.parse` refuses the body.
        """
        body = body_of(request)
        try:
            parse = partial(kind.parse, body.content, self.limits)
            return await self.workers.run(parse, size=len(body.content))
        finally:
            body.release()

    def close(self) -> None:
        """Stops the worker threads. Work that has not started is dropped."""
        self.workers.close()


def context_of(request: Request) -> ServerContext:
    """Returns the state of the application that got the request."""
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context


def request_id_of(request: Request) -> str:
    """Returns the request's id, which RequestContextMiddleware has chosen."""
    return str(request.state.request_id)
