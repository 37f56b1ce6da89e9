"""What the routes share: engine, settings, metrics, the tokenizer's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.errors import ModelNotFoundError
from ryzjax.serving.http.frontend_protocol import EngineFrontend
from ryzjax.serving.http.lifecycle import Lifecycle
from ryzjax.serving.http.logprobs import TokenTexts

__all__ = ["ServerContext", "context_of", "request_id_of"]

T = TypeVar("T")


class ServerContext:
    """The state of one application; `app.state.context`."""

    def __init__(self, engine: EngineFrontend, config: HttpConfig, metrics: EngineMetrics):
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.lifecycle = Lifecycle()
        self.loading = asyncio.Lock()
        self.token_texts = TokenTexts(engine.tokenizer)
        # One thread: a long prompt must not stall the streams of others, and tokenizers are not all thread-safe.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="ryzjax-tokenize")

    @property
    def model_name(self) -> str:
        """The name clients give as `model`."""
        return self.config.served_model_name or self.engine.model_name

    def adapter_of(self, model: str) -> str | None:
        """The adapter that a request's `model` names; None for the model itself. Raises ModelNotFoundError."""
        if model == self.model_name:
            return None
        names = [adapter.name for adapter in self.engine.adapters]
        if model not in names:
            raise ModelNotFoundError(model, self.model_name, names)
        return model

    async def tokenize(self, work: Callable[[], T]) -> T:
        """Runs tokenizer work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    def close(self) -> None:
        """Ends the tokenizer's thread; work not begun is dropped."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)


def context_of(request: Request) -> ServerContext:
    """The application's state."""
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context


def request_id_of(request: Request) -> str:
    """The request's id, as RequestContextMiddleware chose it."""
    return str(request.state.request_id)
