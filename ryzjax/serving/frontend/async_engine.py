"""AsyncEngine: the caller's side of the engine. Streams, vectors, adapters, drain."""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, EngineStoppedError
from ryzjax.lora import Adapter
from ryzjax.models.config import ModelConfig
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.engine.engine_thread import EngineThread
from ryzjax.serving.engine.listeners import Listener, Listeners, LoopListener
from ryzjax.serving.frontend.adapter_registry import AdapterRegistry
from ryzjax.serving.frontend.embedding import VectorCollector, check_embedding, finish_embedding
from ryzjax.serving.frontend.output_collector import OutputCollector
from ryzjax.serving.frontend.request_builder import RequestBuilder, as_token_ids
from ryzjax.serving.frontend.request_stream import RequestStream
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EmbeddingOutput, EngineRequest, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["AsyncEngine", "Prompt"]

Prompt = str | Sequence[int]

_LONG_TEXT = 4096  # characters from which tokenizing would hold up the event loop
_LONG_STOPS = 1024  # characters from which preparing stop strings would


class AsyncEngine:
    """Streams completions from an engine on its own thread. Callers may be on any number of event loops.

    The thread ends with `stop`, with the last reference to this object, or with the interpreter.

    Args:
      engine: ready to step.
      tokenizer: the model's.
      config: the model's.
      model_name: what callers call it.
      max_context_tokens: longest prompt plus output.
      max_queue: requests that may wait beside the running ones.
      pooling: of `embed` where a request names none.
      certificate: what the model's quantization cost, in short; None where there is no certificate.
      adapters: those that requests may name; None where none are served.
      default_sampling: settings of requests that do not name their own; callers of this class apply them.
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
        adapters: AdapterRegistry | None = None,
        default_sampling: SamplingDefaults | None = None,
    ):
        self.tokenizer = tokenizer
        self.model_config = config
        self.model_name = model_name
        self.certificate = certificate
        self._adapters = adapters
        self.max_context_tokens = max_context_tokens
        self.metrics: EngineMetrics = engine.metrics
        self.engine = engine
        self.default_sampling: SamplingDefaults = default_sampling or {}
        self.max_open_sequences = max_open = max_queue + engine.runner.max_sequences
        self.builder = RequestBuilder(config, max_context_tokens=max_context_tokens, max_open=max_open, pooling=pooling)
        self._listeners = Listeners(max_open=max_open, retry_after_s=lambda: engine.scheduler.retry_after_s)
        # The thread knows nothing of this object, so that dropping the last reference to it can end the thread.
        self._thread = EngineThread(engine, self._listeners)
        self._is_started = False
        # At exit the thread's own hook ends it, and waits for it.
        weakref.finalize(self, self._thread.request_stop).atexit = False

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()
        self._is_started = True
        self.metrics.set_healthy(True)

    def stop(self) -> None:
        """Stops the thread; what is still open ends with an error."""
        self._listeners.refuse("the engine was stopped")
        self._thread.stop()
        self._listeners.end_all("the engine was stopped")

    async def drain(
        self, timeout_s: float, *, reason: str = "the engine shut down before the request was finished"
    ) -> None:
        """Refuses new requests, waits `timeout_s` seconds for the open ones, ends the rest with `reason`."""
        self._listeners.refuse("the engine is shutting down; send the request to another server")
        deadline = time.monotonic() + timeout_s
        while self.num_open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._thread.abort_all(reason)

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread is alive and has not failed."""
        return self._thread.failure is None and self._thread.is_alive

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self._is_started and self.is_healthy and not self._listeners.is_refusing

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

    def adapter(self, name: str | None) -> ServedAdapter | None:
        """The current version of an adapter; None for None.

        Raises:
          ConfigError: no adapters are served here.
          AdapterNotFoundError: no adapter has this name.
        """
        return None if name is None else self._registry().get(name)

    def submit(self, requests: Sequence[EngineRequest], listener: Listener) -> None:
        """Opens requests, all or none; the listener gets their events. From any thread.

        Raises:
          QueueFullError, EngineStoppedError: as for `stream`.
          RequestError: an id is in use.
        """
        if not self._is_started:
            raise EngineStoppedError("the engine is not started; call start() first")
        self._thread.submit(requests, listener)

    def close(self, request_id: str, listener: Listener, *, abort: bool) -> None:
        """Closes a request that `submit` opened for this listener: no event follows. From any thread.

        Args:
          abort: whether it has not had its last event.
        """
        self._thread.close(request_id, listener, abort=abort)

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, adapter: str | None = None
    ) -> RequestOutput:
        """The finished completions of one prompt; errors as for `stream`."""
        request_id = request_id or uuid.uuid4().hex
        token_ids = await self._token_ids(prompt)
        collector = OutputCollector(params.n)
        async for delta in self.stream(token_ids, params, request_id=request_id, adapter=adapter):
            collector.add(delta)
        return collector.output(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=token_ids,
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
        token_ids = await self._token_ids(prompt)
        requests = self.builder.completions(token_ids, params, request_id or uuid.uuid4().hex, self.adapter(adapter))
        open_stream = partial(RequestStream, requests, self.tokenizer)
        is_long = sum(map(len, params.stop)) > _LONG_STOPS
        stream = await asyncio.to_thread(open_stream) if is_long else open_stream()
        listener = LoopListener()
        self.submit(requests, listener)
        try:
            while not stream.is_finished:
                event = await listener.get()
                deltas = stream.push(event)
                if not stream.is_open(event.request_id):
                    # A stop string ends a completion ahead of the engine.
                    self.close(event.request_id, listener, abort=event.finish_reason is None)
                for delta in deltas:
                    yield delta
        finally:
            for left in stream.open_ids:
                self.close(left, listener, abort=True)

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
        # Before the prompt is tokenized: bad settings cost nothing.
        check_embedding(pooling=pooling, dimensions=dimensions, hidden_size=self.model_config.hidden_size)
        token_ids = await self._token_ids(prompt)
        request = self.builder.embedding(token_ids, pooling, request_id or uuid.uuid4().hex, self.adapter(adapter))
        listener, collector = LoopListener(), VectorCollector()
        self.submit([request], listener)
        try:
            while not collector.is_finished:
                collector.push(await listener.get())
        finally:
            self.close(request.request_id, listener, abort=not collector.is_finished)
        return EmbeddingOutput(
            request_id=request.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(token_ids),
            embedding=finish_embedding(collector.vector, dimensions=dimensions, normalize=normalize),
        )

    async def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return as_token_ids(prompt)
        if len(prompt) > _LONG_TEXT:
            return tuple(await asyncio.to_thread(self.encode, prompt))
        return tuple(self.encode(prompt))
