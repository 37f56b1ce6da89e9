"""What the routes share: the engine, the settings and limits, the metrics, and threads for large work."""

from __future__ import annotations

import asyncio
from functools import cached_property, partial
from typing import TypeVar

from fastapi import Request

from ryzjax.errors import ModelNotFoundError
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.http.bodies import BodyReaders, body_of
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.fields import JsonBody
from ryzjax.serving.http.frontend_protocol import EngineFrontend
from ryzjax.serving.http.lifecycle import Lifecycle
from ryzjax.serving.http.limits import RequestLimits
from ryzjax.serving.http.logprobs import TokenTexts
from ryzjax.serving.http.workers import Workers

__all__ = ["ServerContext", "context_of", "request_id_of"]

Body = TypeVar("Body", bound=JsonBody)


class ServerContext:
    """The state of one application; `app.state.context`."""

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
        """How large the parts of a request may be."""
        max_tokens = self.engine.max_context_tokens
        return RequestLimits(
            config=self.config,
            max_context_tokens=max_tokens,
            max_prompt_chars=self.engine.tokenizer.max_chars(max_tokens),
        )

    @property
    def model_name(self) -> str:
        """The name clients give as `model`."""
        return self.config.served_model_name or self.engine.model_name

    @property
    def max_sequences_per_request(self) -> int:
        """Most sequences that one request may start."""
        chosen = self.config.max_sequences_per_request
        return max(1, self.engine.max_open_sequences // 4) if chosen is None else chosen

    def adapter_of(self, model: str) -> str | None:
        """The adapter that a request's `model` names; None for the model itself. Raises ModelNotFoundError."""
        if model == self.model_name:
            return None
        names = [adapter.name for adapter in self.engine.adapters]
        if model not in names:
            raise ModelNotFoundError(model, self.model_name, names)
        return model

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """Parses and checks the body of a request, and gives the memory of its bytes back. Raises as `JsonBody.parse`.

        Args:
          request: a request whose body `BodyMiddleware` has read.
          kind: what the body must be.
        """
        body = body_of(request)
        try:
            parse = partial(kind.parse, body.content, self.limits)
            return await self.workers.run(parse, size=len(body.content))
        finally:
            body.release()

    def close(self) -> None:
        """Ends the threads; work that has not begun is dropped."""
        self.workers.close()


def context_of(request: Request) -> ServerContext:
    """The application's state."""
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context


def request_id_of(request: Request) -> str:
    """The request's id, as RequestContextMiddleware chose it."""
    return str(request.state.request_id)
