"""Engine: schedule, run, commit. It owns the model, the KV cache and the scheduler, and is not thread-safe."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import numpy as np

from ryzjax.errors import RyzJAXError
from ryzjax.obs.metrics import EngineMetrics, RequestStats
from ryzjax.serving.device.runner import InFlightStep, ModelRunner
from ryzjax.serving.device.step_result import StepResult
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.host.step_plan import StepPlan
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EngineRequest, FinishReason, TokenEvent, TokenLogprobs

__all__ = ["Engine"]

Arguments = ParamSpec("Arguments")

_log = logging.getLogger(__name__)


class Engine:
    """Continuous batching. Sequences join and leave at any step.

    Args:
      runner: a compiled runner with its arrays allocated.
      scheduler: the scheduler of the runner's page pool.
      metrics: the counters of the engine.
      overlap: dispatch step n+1 before reading the tokens of step n. The tokens are the same either way.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, metrics: EngineMetrics, *, overlap: bool = True):
        self.runner = runner
        self.scheduler = scheduler
        self.metrics = metrics
        self.overlap = overlap
        self._in_flight: InFlightStep | None = None
        self._num_preemptions = 0  # as the metrics know it

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._in_flight is not None or self.scheduler.has_work

    def add(self, request: EngineRequest) -> TokenEvent | None:
        """Queues a request. Returns an error event if the scheduler refuses it."""
        try:
            self.scheduler.add(request)
        except RyzJAXError as error:
            # Without the traceback, whose frames would keep the engine alive.
            return TokenEvent(request_id=request.request_id, finish_reason="error", error=error.with_traceback(None))
        # The scheduler checks a request before it changes anything, so this error concerns only this request.
        except Exception as error:
            return _failed(request, error)
        return None

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its pages at once. Unknown ids are ignored."""
        sequence = self.scheduler.abort(request_id)
        if sequence is not None:
            self._record_done(sequence, "abort")

    def step(self) -> list[TokenEvent]:
        """Runs one iteration of the loop and returns the events of the step that it read."""
        if self.overlap:
            return self._step_overlapped()
        step = self._dispatch_next()
        return [] if step is None else self._commit(step)

    def _step_overlapped(self) -> list[TokenEvent]:
        previous = self._in_flight
        self._in_flight = self._dispatch_next()
        return [] if previous is None else self._commit(previous)

    def _dispatch_next(self) -> InFlightStep | None:
        plan = self.scheduler.schedule()
        self._write_adapters()
        return None if plan is None else self.runner.dispatch(plan)

    def prefetch_adapter(self, adapter: ServedAdapter) -> None:
        """Writes an adapter into an empty slot before its first request, if there is an empty slot."""
        if self.scheduler.adapters is not None and self.scheduler.adapters.prefetch(adapter):
            self._write_adapters()

    def retire_adapter(self, adapter: ServedAdapter) -> None:
        """Retires a version. No new request uses it, and running requests keep it to their end."""
        if self.scheduler.adapters is not None:
            self.scheduler.adapters.retire(adapter)
            self.metrics.set_loaded_adapters(self.scheduler.adapters.num_loaded)

    def _write_adapters(self) -> None:
        """Starts writing the adapters that the next step or a future request needs."""
        if self.scheduler.adapters is None:
            return
        for slot, adapter in self.scheduler.adapters.take_loads():
            started = time.perf_counter()
            self.runner.set_adapter(slot, adapter)
            self.metrics.adapter_written(time.perf_counter() - started)
        self.metrics.set_loaded_adapters(self.scheduler.adapters.num_loaded)

    def finish_in_flight(self) -> None:
        """Waits for the step in flight and drops its tokens. The engine cannot be used afterwards."""
        if self._in_flight is not None:
            self.runner.read(self._in_flight)
            self._in_flight = None

    def check_integrity(self) -> None:
        """Raises AssertionError if pages or slots are lost."""
        self.scheduler.check_integrity()

    def _commit(self, step: InFlightStep) -> list[TokenEvent]:
        result = self.runner.read(step)
        now = time.monotonic()
        sampling = [row.sequence for row in step.plan.rows if row.samples]
        row_of = {id(sequence): i for i, sequence in enumerate(sampling)}
        events = self._prompt_events(step.plan, result) if step.plan.readings else []
        for sequence, token, reason in self.scheduler.commit(step.plan, result.tokens[: len(sampling)]):
            if token is None:
                events.append(TokenEvent(request_id=sequence.request.request_id, finish_reason=reason))
            else:
                event = self._guard(self._event, sequence, token, reason, result, row_of[id(sequence)])
                events.append(event)
                if event.finish_reason == "error":
                    continue  # counted already
                self._record_token(sequence, now)
            if reason is not None:
                self._record_done(sequence, reason)
        self._record_step(step.plan, step.padded_tokens)
        if step.plan.readings:
            self.metrics.prompts_read(scored_tokens=step.plan.num_scored, embeddings=len(result.vectors))
        return events

    def _prompt_events(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Returns the events of scored and pooled prompts. They precede the event of the sequence's token or end."""
        events: list[TokenEvent] = []
        start = 0
        # This includes sequences that were preempted since, because they are not scored again.
        for reading in plan.readings:
            sequence, stop = reading.row.sequence, start + len(reading.scored)
            if reading.scored and sequence.state is not SequenceState.FINISHED:
                events.append(self._guard(self._scores_event, sequence, result, start, stop))
            start = stop
        pooled = [reading.row.sequence for reading in plan.readings if reading.pooled and reading.finishes]
        for sequence, total in zip(pooled, result.vectors, strict=True):
            if sequence.state is not SequenceState.FINISHED:
                events.append(self._guard(self._vector_event, sequence, total))
        return events

    def _guard(
        self,
        make: Callable[Concatenate[Sequence, Arguments], TokenEvent],
        sequence: Sequence,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> TokenEvent:
        """Returns the event that `make` returns. If `make` fails, its sequence ends with an error; others continue."""
        try:
            return make(sequence, *arguments, **options)
        except Exception as error:
            self.scheduler.abort(sequence.request.request_id)
            self._record_done(sequence, "error")
            return _failed(sequence.request, error)

    def _scores_event(self, sequence: Sequence, result: StepResult, start: int, stop: int) -> TokenEvent:
        request = sequence.request
        scores = result.prompt_scores(start, stop, request.prompt_logprobs or 0)
        return TokenEvent(request_id=request.request_id, prompt_scores=scores)

    def _vector_event(self, sequence: Sequence, total: np.ndarray) -> TokenEvent:
        count = sequence.prompt_len if sequence.request.pooling == "mean" else 1
        return TokenEvent(request_id=sequence.request.request_id, vector=total / np.float32(count))

    def _event(
        self, sequence: Sequence, token: int, reason: FinishReason | None, result: StepResult, row: int
    ) -> TokenEvent:
        request = sequence.request
        logprobs = None
        if request.params.logprobs is not None:
            logprob, rank, top = result.logprobs(row, request.params.logprobs)
            logprobs = (TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=top),)
        return TokenEvent(
            request_id=request.request_id,
            token_ids=(token,),
            logprobs=logprobs,
            finish_reason=reason,
            stop_token_id=token if reason == "stop" else None,
        )

    def _record_token(self, sequence: Sequence, now: float) -> None:
        if sequence.first_token_s is None:
            sequence.first_token_s = now
            self.metrics.first_token(now - sequence.request.arrival_s)
        else:
            self.metrics.inter_token(now - sequence.last_token_s)
        sequence.last_token_s = now

    def _record_done(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        self.metrics.request_done(
            RequestStats(
                prompt_tokens=len(request.prompt_token_ids),
                generation_tokens=sequence.output_len,
                finish_reason=reason,
                arrival_s=request.arrival_s,
                first_scheduled_s=sequence.first_scheduled_s,
                first_token_s=sequence.first_token_s,
                finished_s=time.monotonic(),
                adapter=None if request.adapter is None else request.adapter.name,
            )
        )

    def _record_step(self, plan: StepPlan, padded_tokens: int) -> None:
        scheduler = self.scheduler
        if scheduler.num_preemptions > self._num_preemptions:
            self.metrics.preempted(scheduler.num_preemptions - self._num_preemptions)
            self._num_preemptions = scheduler.num_preemptions
        self.metrics.step_done(
            tokens=plan.num_tokens,
            padded_tokens=padded_tokens,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_usage=scheduler.pool.num_used / scheduler.pool.num_usable,
        )


def _failed(request: EngineRequest, error: Exception) -> TokenEvent:
    """Returns the last event of a request that failed unexpectedly."""
    _log.error("request %s failed", request.request_id, exc_info=error)
    cause = f"{type(error).__name__}: {error}"
    failure = RuntimeError(f"request {request.request_id!r} failed in the engine ({cause}); other requests go on")
    return TokenEvent(request_id=request.request_id, finish_reason="error", error=failure)
