"""Runs batches of jobs, and streams, on the thread of a caller without an event loop.

The thread waits in a queue that the engine's thread fills, so Ctrl-C interrupts it at once. If anything ends the wait
early, the open requests are aborted.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Generic, Protocol, TypeVar

from ryzjax.errors import QueueFullError
from ryzjax.serving.engine.listeners import ThreadListener
from ryzjax.serving.frontend.async_engine import AsyncEngine
from ryzjax.serving.frontend.embedding import VectorCollector, check_embedding, finish_embedding
from ryzjax.serving.frontend.interrupts import interruptible
from ryzjax.serving.frontend.output_collector import OutputCollector
from ryzjax.serving.frontend.request_stream import RequestStream
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import (
    EmbeddingOutput,
    EngineRequest,
    Pooling,
    RequestOutput,
    StreamDelta,
    TokenEvent,
)
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["CompletionJob", "EmbeddingJob", "Job", "run_jobs", "stream_deltas"]

Output_co = TypeVar("Output_co", covariant=True)
Output = TypeVar("Output")


class Job(Protocol[Output_co]):
    """A checked request and the collection of its output."""

    @property
    def num_sequences(self) -> int:
        """The number of sequences that the job opens."""
        ...

    def start(self) -> Sequence[EngineRequest]:
        """Returns the requests to open. Called again after a refusal."""
        ...

    def push(self, event: TokenEvent) -> bool:
        """Adds an event of one of the requests. Returns whether that request needs no more events."""
        ...

    def finish(self) -> tuple[Output_co, int]:
        """Returns the output, and its number of tokens for the progress bar. Call it once, after all events."""
        ...


class CompletionJob:
    """The completions of one prompt.

    Args:
      engine: The engine that runs the job.
      prompt: The text; None if token ids were given.
      token_ids: The token ids of the prompt.
      params: The settings of the completions.
      adapter: The version of the adapter to run with; None runs the model alone.

    Raises:
      RequestError: The request is invalid.
      ContextLengthError: The prompt is too long.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        prompt: str | None,
        token_ids: tuple[int, ...],
        params: SamplingParams,
        adapter: ServedAdapter | None,
    ):
        engine.builder.check_completion(token_ids, params)
        self._engine = engine
        self._prompt = prompt
        self._token_ids = token_ids
        self._params = params
        self._adapter = adapter
        self._request_id = uuid.uuid4().hex

    @property
    def num_sequences(self) -> int:
        """The number of completions."""
        return self._params.n

    def start(self) -> Sequence[EngineRequest]:
        """Returns the requests to open, one for each completion."""
        # Made late, because the time of a request counts from here, and a detokenizer for each prompt costs memory.
        requests = self._engine.builder.completions(self._token_ids, self._params, self._request_id, self._adapter)
        self._stream = RequestStream(requests, self._engine.tokenizer)
        self._collector = OutputCollector(self._params.n)
        return requests

    def push(self, event: TokenEvent) -> bool:
        """Adds an event. Returns whether its completion is finished."""
        for delta in self._stream.push(event):
            self._collector.add(delta)
        return not self._stream.is_open(event.request_id)

    def finish(self) -> tuple[RequestOutput, int]:
        """Returns the output and its number of generated tokens."""
        output = self._collector.output(
            request_id=self._request_id, prompt=self._prompt, prompt_token_ids=self._token_ids
        )
        return output, sum(len(completion.token_ids) for completion in output.outputs)


class EmbeddingJob:
    """The vector of one prompt.

    Args:
      engine: The engine that runs the job.
      prompt: The text; None if token ids were given.
      token_ids: The token ids of the prompt.
      pooling, dimensions, normalize: The settings, described by `AsyncEngine.embed`.
      adapter: The version of the adapter to run with; None runs the model alone.

    Raises:
      RequestError: The request is invalid.
      ContextLengthError: The prompt is too long.
    """

    num_sequences = 1

    def __init__(
        self,
        engine: AsyncEngine,
        prompt: str | None,
        token_ids: tuple[int, ...],
        *,
        pooling: Pooling | None,
        dimensions: int | None,
        normalize: bool,
        adapter: ServedAdapter | None,
    ):
        check_embedding(pooling=pooling, dimensions=dimensions, hidden_size=engine.model_config.hidden_size)
        engine.builder.check_embedding(token_ids)
        self._engine = engine
        self._prompt = prompt
        self._token_ids = token_ids
        self._pooling: Pooling | None = pooling
        self._dimensions = dimensions
        self._normalize = normalize
        self._adapter = adapter
        self._request_id = uuid.uuid4().hex
        self._collector = VectorCollector()

    def start(self) -> Sequence[EngineRequest]:
        """Returns the request to open."""
        return [self._engine.builder.embedding(self._token_ids, self._pooling, self._request_id, self._adapter)]

    def push(self, event: TokenEvent) -> bool:
        """Adds an event. Returns whether it was the last one."""
        self._collector.push(event)
        return self._collector.is_finished

    def finish(self) -> tuple[EmbeddingOutput, int]:
        """Returns the output and the number of tokens of its prompt."""
        output = EmbeddingOutput(
            request_id=self._request_id,
            prompt=self._prompt,
            prompt_token_ids=list(self._token_ids),
            embedding=finish_embedding(self._collector.vector, dimensions=self._dimensions, normalize=self._normalize),
        )
        return output, len(self._token_ids)


def run_jobs(
    engine: AsyncEngine, jobs: Sequence[Job[Output]], on_done: Callable[[int], None] = lambda tokens: None
) -> list[Output]:
    """Runs jobs to their end, as many at once as keep the engine busy, and returns their outputs in order.

    Args:
      engine: The engine that runs the jobs.
      jobs: The jobs.
      on_done: Called with the number of tokens of each job that ends.

    Raises:
      QueueFullError: Other callers fill the engine's queue.
      EngineStoppedError: The engine was stopped or has failed.
      KeyboardInterrupt: The user pressed Ctrl-C, on the main thread.
    """
    batch = _Batch(engine, jobs, on_done)
    with interruptible():
        return batch.run()


def stream_deltas(engine: AsyncEngine, requests: Sequence[EngineRequest]) -> Generator[StreamDelta, None, None]:
    """Yields the deltas of one prompt's completions. Closing the iterator aborts the unfinished ones.

    Args:
      engine: The engine that runs the requests.
      requests: The requests, made by `RequestBuilder.completions`. They open when the first delta is asked for.

    Raises:
      QueueFullError, EngineStoppedError, KeyboardInterrupt: In the same cases as `run_jobs`.
    """
    listener, stream = ThreadListener(), RequestStream(requests, engine.tokenizer)
    try:
        engine.submit(requests, listener)
        while not stream.is_finished:
            with interruptible():
                event = listener.get()
            deltas = stream.push(event)
            if not stream.is_open(event.request_id):
                # A stop string ends a completion before the engine knows of it.
                engine.close(event.request_id, listener, abort=event.finish_reason is None)
            yield from deltas
    finally:
        for request_id in stream.open_ids:
            engine.close(request_id, listener, abort=True)


class _Batch(Generic[Output]):
    """The running and waiting jobs of one call of `run_jobs`."""

    def __init__(self, engine: AsyncEngine, jobs: Sequence[Job[Output]], on_done: Callable[[int], None]):
        self._engine = engine
        self._jobs = jobs
        self._on_done = on_done
        # Twice what runs at once keeps the engine busy without filling its queue.
        self._most_open = min(2 * engine.runner.max_sequences, engine.builder.max_open)
        self._listener = ThreadListener()
        self._waiting = deque(range(len(jobs)))
        self._job_of: dict[str, int] = {}  # of each open request
        self._num_open = [0] * len(jobs)
        self._outputs: dict[int, Output] = {}

    def run(self) -> list[Output]:
        try:
            self._open_more()
            while self._job_of:
                event = self._listener.get()
                if self._take(event):
                    self._open_more()
        finally:
            for request_id in self._job_of:
                self._engine.close(request_id, self._listener, abort=True)
        return [self._outputs[i] for i in range(len(self._jobs))]

    def _open_more(self) -> None:
        while self._waiting:
            job = self._jobs[self._waiting[0]]
            if self._job_of and len(self._job_of) + job.num_sequences > self._most_open:
                return
            try:
                self._open(self._waiting[0])
            except QueueFullError:
                if not self._job_of:
                    raise
                return  # other callers took the room; there is some again when one of these jobs ends
            self._waiting.popleft()

    def _open(self, index: int) -> None:
        requests = self._jobs[index].start()
        ids = [request.request_id for request in requests]
        # Recorded before the requests open, so that an interrupt at any time finds what to abort.
        self._job_of.update(dict.fromkeys(ids, index))
        try:
            self._engine.submit(requests, self._listener)
        except QueueFullError:
            for request_id in ids:
                del self._job_of[request_id]
            raise
        self._num_open[index] = len(ids)

    def _take(self, event: TokenEvent) -> bool:
        """Passes an event to its job. Returns whether a request has ended."""
        index = self._job_of.get(event.request_id)
        if index is None or not self._jobs[index].push(event):
            return False
        del self._job_of[event.request_id]
        # A stop string ends a completion before the engine knows of it.
        self._engine.close(event.request_id, self._listener, abort=event.finish_reason is None)
        self._num_open[index] -= 1
        if not self._num_open[index]:
            self._outputs[index], tokens = self._jobs[index].finish()
            self._on_done(tokens)
        return True
