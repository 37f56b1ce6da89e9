"""AsyncEngine: runs requests on an engine from any number of event loops, and drains it.

It is the `EngineFrontend` that the servers talk to, and the base of `LLM`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import EngineStoppedError
from ryzjax.lora import Adapter
from ryzjax.models.config import ModelConfig
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.device.runner import ModelRunner
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.engine.engine_thread import EngineThread
from ryzjax.serving.engine.listeners import Listener, Listeners, LoopListener
from ryzjax.serving.frontend.adapter_registry import AdapterRegistry
from ryzjax.serving.frontend.embedding import VectorCollector, check_embedding, finish_embedding
from ryzjax.serving.frontend.live_adapters import LiveAdapters
from ryzjax.serving.frontend.output_collector import OutputCollector
from ryzjax.serving.frontend.request_builder import RequestBuilder, as_token_ids
from ryzjax.serving.frontend.request_stream import RequestStream
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EmbeddingOutput, EngineRequest, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["AsyncEngine", "Prompt"]

Prompt = str | Sequence[int]

_LONG_TEXT = 4096
"""Number of characters above which a prompt is tokenized on a thread, so that it does not block the event loop."""
_LONG_STOPS = 1024
"""Number of characters above which stop strings are prepared on a thread."""


class AsyncEngine:
    """An engine on its own thread that callers on any number of event loops share.

    The thread ends when `stop` is called, when the last reference to this object goes, or when the interpreter exits.

    Args:
      engine: An engine that is ready to step. Once the thread has started, only the thread may call it.
      tokenizer: The tokenizer of the model.
      config: The config of the model.
      model_name: The name of the model for callers.
      max_context_tokens: The largest number of tokens of a prompt and its output together.
      max_queue: The number of sequences that may wait beside the running ones.
      pooling: The pooling of `embed` for requests that name none.
      certificate: A summary of the model's quantization certificate; None if it has no certificate.
      adapters: The adapters that requests may name; None if the engine serves no adapters.
      default_sampling: The sampling settings of requests that name none. Callers of this class apply them.

    Attributes:
      core: The engine. Code that steps it itself, such as a benchmark, must stop the thread first.
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
        self.max_context_tokens = max_context_tokens
        self.metrics: EngineMetrics = engine.metrics
        self.core = engine
        self.default_sampling: SamplingDefaults = default_sampling or {}
        self.max_open_sequences = max_open = max_queue + engine.runner.max_sequences
        self.builder = RequestBuilder(config, max_context_tokens=max_context_tokens, max_open=max_open, pooling=pooling)
        self._listeners = Listeners(max_open=max_open, retry_after_s=lambda: engine.scheduler.retry_after_s)
        # The thread holds no reference to this object, so that dropping the last reference can end the thread.
        self._thread = EngineThread(engine, self._listeners)
        self._adapters = LiveAdapters(adapters, self._thread, engine.metrics)
        self._is_started = False
        # At exit of the interpreter, the thread's own hook ends the thread and waits for it.
        weakref.finalize(self, self._thread.request_stop).atexit = False

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()
        self._is_started = True
        self.metrics.set_healthy(True)

    def stop(self) -> None:
        """Stops the engine's thread. Open requests end with an error."""
        self._listeners.refuse("the engine was stopped")
        self._thread.stop()
        self._listeners.end_all("the engine was stopped")

    async def drain(
        self, timeout_s: float, *, reason: str = "the engine shut down before the request was finished"
    ) -> None:
        """Refuses new requests and lets the open ones finish.

        Args:
          timeout_s: How long to wait, in seconds.
          reason: The error message of requests that are still open then.
        """
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
        """Whether the engine accepts new requests."""
        return self._is_started and self.is_healthy and not self._listeners.is_refusing

    @property
    def is_idle(self) -> bool:
        """Whether no request is open and the engine has handled every message."""
        return not self.num_open and not self.core.has_work

    @property
    def runner(self) -> ModelRunner:
        """The runner of the engine, for inspection."""
        return self.core.runner

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler of the engine, for inspection."""
        return self.core.scheduler

    @property
    def num_open(self) -> int:
        """The number of sequences that wait or run."""
        return len(self._listeners)

    def encode(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt, with the special tokens that the model expects around a text."""
        return self.tokenizer.encode(prompt)

    @property
    def adapters(self) -> tuple[ServedAdapter, ...]:
        """The adapters that requests may name, in the order in which they were loaded."""
        return self._adapters.all()

    def load_adapter(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Loads an adapter while requests run.

        The call blocks its thread, which may be any thread, while files are read. The engine keeps running, and
        nothing is compiled. Requests that name the adapter after the call use it. Requests that are running with an
        older version of that name, or are waiting for it, keep the older version until they end.

        Args:
          name: The name by which requests choose the adapter.
          source: An adapter in memory, or a directory in the format of PEFT.
          replace: Whether to replace an adapter of the same name. If False, such a name is an error.
          root: A description of the adapter's origin for people; by default its directory or its name.

        Raises:
          ConfigError: The engine serves no adapters, or the rank or the layers of this one do not fit.
          CheckpointError: The directory holds no adapter, or a damaged one.
          AdapterConflictError: The name is taken, or `max_cpu_loras` adapters are loaded.
        """
        return self._adapters.load(name, source, replace=replace, root=root)

    def unload_adapter(self, name: str) -> None:
        """Removes an adapter. Requests that run with it or wait for it still finish with it.

        Raises:
          ConfigError: The engine serves no adapters.
          AdapterNotFoundError: No adapter has this name.
        """
        self._adapters.unload(name)

    def adapter(self, name: str | None) -> ServedAdapter | None:
        """Returns the current version of an adapter; None for None. Raises the errors of `unload_adapter`."""
        return self._adapters.get(name)

    def submit(self, requests: Sequence[EngineRequest], listener: Listener) -> None:
        """Submits requests to the engine, all or none. May be called on any thread.

        Args:
          requests: The requests, one for each sequence.
          listener: Receives the events of the requests.

        Raises:
          QueueFullError: Too many requests are waiting.
          EngineStoppedError: The engine is draining, was stopped, has failed, or was never started.
          RequestError: A request id is in use.
        """
        if not self._is_started:
            raise EngineStoppedError("the engine is not started; call start() first")
        self._thread.submit(requests, listener)

    def close(self, request_id: str, listener: Listener, *, abort: bool) -> None:
        """Closes a submitted request: its listener gets no further event. May be called on any thread.

        Args:
          request_id: The id of the request.
          listener: The listener that the request was submitted with.
          abort: Whether the request has not ended yet, so that the engine must abort it.
        """
        self._thread.close(request_id, listener, abort=abort)

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, adapter: str | None = None
    ) -> RequestOutput:
        """Returns the finished completions of one prompt. Raises the errors of `stream`."""
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
        """Yields deltas of the `n` completions of one prompt. Closing the iterator aborts the unfinished ones.

        With `prompt_logprobs`, the first delta holds the log-probabilities of the prompt and nothing else. The
        request keeps the version of the adapter that is current at the call, even if it is replaced meanwhile.

        Raises:
          AdapterNotFoundError: No adapter has that name.
          RequestError: The request is invalid. Raised before the first delta.
          ContextLengthError: The prompt is too long. Raised before the first delta.
          QueueFullError: Too many requests are waiting. Raised before the first delta.
          EngineStoppedError: The engine is draining, was stopped or has failed.
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
                    # A stop string ends a completion before the engine knows of it.
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
        """Returns the vector of one prompt, from its hidden states after the final norm.

        Cancelling the call aborts the request.

        Args:
          prompt: A text or token ids.
          pooling: "last" (the last token) or "mean" (over all tokens); by default the engine's setting.
          dimensions: The number of leading elements to keep; None keeps all.
          normalize: Whether to scale the kept elements to length 1.
          request_id: The id of the request; by default a random one.
          adapter: The name of the adapter to run with; None runs the model alone.

        Raises the errors of `stream`.
        """
        # Invalid settings are refused before the prompt is tokenized.
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
