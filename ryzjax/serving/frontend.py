"""AsyncEngine: the caller's side of the engine. Text, stop strings, streams, vectors, drain."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ryzjax.data.stop_strings import StopStrings
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, EngineFailedError, EngineStoppedError, QueueFullError, RequestError
from ryzjax.lora import Adapter
from ryzjax.models.config import ModelConfig
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.adapter import ServedAdapter
from ryzjax.serving.adapter_registry import AdapterRegistry
from ryzjax.serving.completion import CompletionStream
from ryzjax.serving.embedding import check_embedding, finish_embedding
from ryzjax.serving.engine import Engine
from ryzjax.serving.engine_thread import EngineThread
from ryzjax.serving.request import (
    CompletionOutput,
    EmbeddingOutput,
    EngineRequest,
    Pooling,
    PromptLogprobs,
    PromptScores,
    RequestOutput,
    StreamDelta,
    TokenEvent,
)
from ryzjax.serving.request_builder import RequestBuilder
from ryzjax.serving.sampling_defaults import SamplingDefaults
from ryzjax.serving.sampling_params import SamplingParams

__all__ = ["AsyncEngine", "Prompt"]

Prompt = str | Sequence[int]

_LONG_TEXT = 4096  # characters from which tokenizing would hold up the event loop
_LONG_STOPS = 1024  # characters from which preparing stop strings would


@dataclass(frozen=True, slots=True)
class _Listener:
    """Where a sequence's events go: a queue, and the event loop that owns it."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent]


class AsyncEngine:
    """Streams completions from an engine on its own thread. Callers may be on any number of event loops.

    Args:
      engine: ready to step.
      tokenizer: the model's.
      config: the model's.
      model_name: what callers call it.
      max_context_tokens: longest prompt plus output.
      max_queue: requests that may wait beside the running ones.
      pooling: of `embed` where a request names none.
      certificate: what the model's quantization cost, in short; None where there is no certificate.
      default_sampling: settings of requests that do not name their own; callers of this class apply them.
      adapters: those that requests may name; None where none are served.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        model_name: str,
        max_context_tokens: int,
        max_queue: int,
        pooling: Pooling,
        certificate: Mapping[str, object] | None = None,
        default_sampling: SamplingDefaults | None = None,
        adapters: AdapterRegistry | None = None,
    ):
        self.tokenizer = tokenizer
        self.model_config = config
        self.model_name = model_name
        self.certificate = certificate
        self.default_sampling: SamplingDefaults = default_sampling or {}
        self._adapters = adapters
        self.max_context_tokens = max_context_tokens
        self.metrics: EngineMetrics = engine.metrics
        self.engine = engine
        self._builder = RequestBuilder(config, max_context_tokens=max_context_tokens, pooling=pooling)
        self.max_open_sequences = max_queue + engine.runner.max_sequences
        self._thread = EngineThread(engine, self._deliver, self._fail)
        self._listeners: dict[str, _Listener] = {}
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._is_started = False
        self._is_draining = False

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()
        self._is_started = True
        self.metrics.set_healthy(True)

    def stop(self) -> None:
        """Stops the thread; what is still open ends with an error."""
        self._is_draining = True
        self._thread.stop()
        self._end_all("the engine was stopped")

    async def drain(
        self, timeout_s: float, *, reason: str = "the engine shut down before the request was finished"
    ) -> None:
        """Refuses new requests, waits `timeout_s` seconds for the open ones, ends the rest with `reason`."""
        self._is_draining = True
        deadline = time.monotonic() + timeout_s
        while self._listeners and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for request_id in list(self._listeners):
            self._thread.abort(request_id)
        self._end_all(reason)

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread is alive and has not failed."""
        return self._failure is None and self._thread.is_alive

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self._is_started and self.is_healthy and not self._is_draining

    @property
    def num_open(self) -> int:
        """Sequences that wait or run."""
        return len(self._listeners)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens added as the model wants them."""
        return self.tokenizer.encode(prompt)

    @property
    def adapters(self) -> tuple[ServedAdapter, ...]:
        """The adapters that requests may name, in the order of their loading."""
        return () if self._adapters is None else self._adapters.all()

    def load_adapter(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Takes an adapter in while requests run; from any thread, which it holds up while files are read.

        Requests that name it from now on run with it. Those that run with an older version of that name, or wait for
        it, keep theirs to their end. Nothing is compiled, and the engine goes on meanwhile.

        Args:
          name: what requests will call it.
          source: an adapter in memory, or a folder of PEFT's.
          replace: whether the name may be taken.
          root: where it came from, for people; by default its folder, or its name.

        Raises:
          ConfigError: no adapters are served here, or this one does not fit the model, its rank or its layers.
          CheckpointError: the folder is not an adapter's, or damaged.
          AdapterConflictError: the name is taken, or `max_cpu_loras` adapters are there.
        """
        started = time.perf_counter()
        registry = self._registry()
        adapter, replaced = registry.register(name, source, replace=replace, root=root)
        if replaced is not None:
            self._thread.retire(replaced)
        self._thread.prefetch(adapter)
        self.metrics.adapter_registered(time.perf_counter() - started, len(registry.all()))
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Takes no more requests for an adapter; those that run with it, or wait for it, go on to their end.

        Raises:
          ConfigError: no adapters are served here.
          AdapterNotFoundError: no adapter has this name.
        """
        registry = self._registry()
        self._thread.retire(registry.unregister(name))
        self.metrics.set_registered_adapters(len(registry.all()))

    def _registry(self) -> AdapterRegistry:
        if self._adapters is None:
            raise ConfigError("no adapters are served: max_loras is 0; start with --max-loras 4, or max_loras=4")
        return self._adapters

    def _adapter(self, name: str | None) -> ServedAdapter | None:
        return None if name is None else self._registry().get(name)

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, adapter: str | None = None
    ) -> RequestOutput:
        """The finished completions of one prompt; errors as for `stream`."""
        request_id = request_id or uuid.uuid4().hex
        token_ids = await self._token_ids(prompt)
        outputs = [CompletionOutput(index=i) for i in range(params.n)]
        prompt_logprobs = None
        async for delta in self.stream(token_ids, params, request_id=request_id, adapter=adapter):
            if delta.prompt_logprobs is not None:
                prompt_logprobs = delta.prompt_logprobs
            output = outputs[delta.index]
            output.text += delta.text
            output.token_ids.extend(delta.token_ids)
            if delta.logprobs is not None:
                output.logprobs = [*(output.logprobs or ()), *delta.logprobs]
            if delta.finish_reason is not None:
                output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
        return RequestOutput(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(token_ids),
            outputs=outputs,
            prompt_logprobs=prompt_logprobs,
        )

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, adapter: str | None = None
    ) -> AsyncGenerator[StreamDelta, None]:
        """Deltas of the `n` completions as they grow. Closing the iterator aborts what is left.

        With `prompt_logprobs`, the first delta carries the prompt's and nothing else. `adapter` names the one to run
        with, as it is now: a version that replaces it meanwhile changes nothing here.

        Raises:
          AdapterNotFoundError: no adapter has that name.
          RequestError: the request is bad (ContextLengthError: too long); before the first delta.
          QueueFullError: too many requests are waiting; before the first delta.
          EngineStoppedError: the engine drains, is stopped or failed.
        """
        token_ids = tuple(await self._token_ids(prompt))
        requests = self._builder.completions(token_ids, params, request_id or uuid.uuid4().hex, self._adapter(adapter))
        stops = await self._stop_strings(params)
        streams = {
            request.request_id: CompletionStream(i, self.tokenizer, params, stops, token_ids)
            for i, request in enumerate(requests)
        }
        events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._open(requests, _Listener(asyncio.get_running_loop(), events))
        scored: list[PromptScores] | None = None if params.prompt_logprobs is None else []
        try:
            while streams:
                event = await events.get()
                stream = streams.get(event.request_id)
                if stream is None:
                    continue  # ended by a stop string while this event was on its way
                if event.finish_reason == "error":
                    raise self._stopped(event.error)
                if scored is not None:
                    if event.prompt_scores is not None:
                        scored.append(event.prompt_scores)
                        continue
                    # The engine runs in order of arrival: the first sequence's prompt is read before anything else.
                    prompt_logprobs = PromptLogprobs(scored)
                    assert len(prompt_logprobs) == len(token_ids), "an event ahead of the prompt's scores"
                    yield StreamDelta(index=0, text="", token_ids=(), prompt_logprobs=prompt_logprobs)
                    scored = None
                delta = stream.push(event)
                if stream.is_finished:
                    del streams[event.request_id]
                    self._close(event.request_id, abort=event.finish_reason is None)
                yield delta
        finally:
            for left in streams:
                self._close(left, abort=True)

    async def embed(
        self,
        prompt: Prompt,
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> EmbeddingOutput:
        """The vector of one prompt, from its hidden states after the final norm. Cancelling it aborts the request.

        Args:
          pooling: "last" or "mean"; by default the engine's.
          dimensions: leading numbers to keep.
          normalize: scale what is kept to length 1.
          adapter: name of the adapter to run with.

        Raises:
          RequestError: the request is bad (ContextLengthError: too long).
          QueueFullError, EngineStoppedError: as for `stream`.
        """
        check_embedding(pooling=pooling, dimensions=dimensions, hidden_size=self.model_config.hidden_size)
        token_ids = tuple(await self._token_ids(prompt))
        request = self._builder.embedding(token_ids, pooling, request_id or uuid.uuid4().hex, self._adapter(adapter))
        return EmbeddingOutput(
            request_id=request.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(token_ids),
            embedding=finish_embedding(await self._vector(request), dimensions=dimensions, normalize=normalize),
        )

    async def _vector(self, request: EngineRequest) -> np.ndarray:
        events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._open([request], _Listener(asyncio.get_running_loop(), events))
        vector = None
        is_open = True
        try:
            while is_open:
                event = await events.get()
                if event.finish_reason == "error":
                    raise self._stopped(event.error)
                vector = event.vector if vector is None else vector
                is_open = event.finish_reason is None
        finally:
            self._close(request.request_id, abort=is_open)
        assert vector is not None, "the engine pools before it ends the sequence"
        return vector

    async def _token_ids(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) > _LONG_TEXT:
            return await asyncio.to_thread(self.encode, prompt)
        return self.encode(prompt)

    async def _stop_strings(self, params: SamplingParams) -> StopStrings:
        build = partial(StopStrings, tuple(params.stop), params.include_stop_str_in_output)
        if sum(map(len, params.stop)) > _LONG_STOPS:
            return await asyncio.to_thread(build)
        return build()

    def _open(self, requests: list[EngineRequest], listener: _Listener) -> None:
        with self._lock:
            if self._failure is not None:
                raise EngineFailedError(f"the engine failed: {self._failure}; restart the server")
            if not self.is_ready:
                raise EngineStoppedError("the engine is shutting down; send the request to another server")
            if len(self._listeners) + len(requests) > self.max_open_sequences:
                raise QueueFullError(
                    f"{len(self._listeners)} requests are open, at most {self.max_open_sequences} fit; try again later",
                    retry_after_s=self.engine.scheduler.retry_after_s,
                )
            taken = [request.request_id for request in requests if request.request_id in self._listeners]
            if taken:
                raise RequestError(f"request id {taken[0]!r} is in use; expected a new one", param="request_id")
            for request in requests:
                self._listeners[request.request_id] = listener
        for request in requests:
            self._thread.submit(request)

    def _stopped(self, message: str | None) -> EngineStoppedError:
        """The error of a request that the engine ended with `message`."""
        kind = EngineStoppedError if self._failure is None else EngineFailedError
        return kind(message or "the engine failed")

    def _close(self, request_id: str, *, abort: bool) -> None:
        with self._lock:
            known = self._listeners.pop(request_id, None)
        if abort and known is not None:
            self._thread.abort(request_id)

    def _deliver(self, events: list[TokenEvent]) -> None:
        """On the engine's thread: hands each event loop its events in one call."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[TokenEvent], TokenEvent]]] = defaultdict(list)
        for event in events:
            listener = self._listeners.get(event.request_id)
            if listener is not None:
                by_loop[listener.loop].append((listener.events, event))
        for loop, pairs in by_loop.items():
            _call_in_loop(loop, pairs)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._end_all(f"the engine failed: {error}; restart the server")

    def _end_all(self, message: str) -> None:
        with self._lock:
            left = dict(self._listeners)
            self._listeners.clear()
        for request_id, listener in left.items():
            event = TokenEvent(request_id=request_id, finish_reason="error", error=message)
            _call_in_loop(listener.loop, [(listener.events, event)])


def _call_in_loop(loop: asyncio.AbstractEventLoop, pairs: list[tuple[asyncio.Queue[TokenEvent], TokenEvent]]) -> None:
    def put() -> None:
        for events, event in pairs:
            events.put_nowait(event)

    if not loop.is_closed():  # a caller whose loop is gone listens no more
        loop.call_soon_threadsafe(put)
