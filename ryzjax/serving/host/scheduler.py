"""Scheduler: chooses the sequences of the next step and their tokens.

Sequences are served in the order of arrival. Every running sequence that decodes gets its token. The rest of the token
budget goes to the chunk of the running sequence whose prompt is not finished, and then to waiting sequences. Running
sequences arrived before waiting ones, so only the last running sequence can have an unfinished prompt, and one walk
over the running sequences serves the decode rows first.

A sequence gets the pages of all its known tokens when it is admitted, and then one more page at a time. If no page is
free, the sequence that was admitted last loses its pages. It waits, ahead of all others, to be computed again
(preemption by recomputation). The oldest sequence is never preempted for another one, and the pool holds at least one
sequence of full length. The oldest sequence therefore always finishes, and then the next one is the oldest.

A sequence whose adapter cannot have a slot now (`AdapterSlots`) keeps its place in the queue while others pass it. The
order of running sequences is then the order of admission.

Steps may overlap: `schedule` for step n+1 may run before `commit` of step n. The host then does not know the next token
of a sequence, but the device does, and it runs steps in order. Pages and slots can therefore be reused as soon as no
later step needs them, even if earlier steps are in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from ryzjax.errors import CapacityError, ConfigError, QueueFullError, RequestError
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.admission import check_request
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.residency import Residency
from ryzjax.serving.host.retry import FinishRate
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.host.step_plan import Chunk, StepPlan, make_plan
from ryzjax.serving.messages.request import EngineRequest, FinishReason

__all__ = ["Scheduler"]


class Scheduler:
    """Continuous batching over a page pool. It is not thread-safe.

    Args:
      pool: the KV cache pages. This scheduler is their only user.
      max_sequences: the most sequences that run at once, and the number of slots.
      max_batch_tokens: the most tokens of a step.
      max_mixed_tokens: the most tokens of a step in which some sequences decode and others prefill, or two for every
        sequence that decodes, if that is more. It bounds how much one client's prompt slows down the stream of another
        client. None is `max_batch_tokens`.
      max_context_tokens: the most tokens of a sequence, prompt and output.
      max_queue: the most requests that may wait beyond those for which a slot is free.
      rope_switch_length: the number of tokens after which all rotations of a sequence change (LongRoPE). A sequence
        that grows past it is computed again from its first token, in place. None for other models.
      adapters: the slots of adapters, or None if no adapters are served.
      clock: returns monotonic seconds.

    Raises:
      ConfigError: a limit is below 1.
      CapacityError: a sequence of `max_context_tokens` does not fit the pool.
    """

    def __init__(
        self,
        *,
        pool: PagePool,
        max_sequences: int,
        max_batch_tokens: int,
        max_context_tokens: int,
        max_queue: int,
        max_mixed_tokens: int | None = None,
        rope_switch_length: int | None = None,
        adapters: AdapterSlots | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        max_mixed_tokens = max_batch_tokens if max_mixed_tokens is None else max_mixed_tokens
        limits = {
            "max_sequences": max_sequences,
            "max_batch_tokens": max_batch_tokens,
            "max_mixed_tokens": max_mixed_tokens,
            "max_context_tokens": max_context_tokens,
            "max_queue": max_queue,
        }
        for name, value in limits.items():
            if value < 1:
                raise ConfigError(f"{name}={value} is out of range; expected at least 1")
        if pool.pages_for(max_context_tokens) > pool.num_usable:
            raise CapacityError(
                f"max_context_tokens={max_context_tokens} does not fit the KV pool of {pool.num_usable} pages of "
                f"{pool.page_size_tokens} tokens; lower max_context_tokens or give the KV pool more memory"
            )
        self.pool = pool
        self.max_sequences = max_sequences
        self.max_batch_tokens = max_batch_tokens
        self.max_mixed_tokens = max_mixed_tokens
        self.max_context_tokens = max_context_tokens
        self.max_queue = max_queue
        self.rope_switch_length = rope_switch_length
        self.adapters = adapters
        self._residency = Residency(pool=pool, max_sequences=max_sequences, adapters=adapters)
        self._clock = clock
        self._finishes = FinishRate()
        self._arrivals = 0
        self._uncommitted: deque[StepPlan] = deque()

    @property
    def num_running(self) -> int:
        """The number of admitted sequences, also those whose last token is in flight."""
        return len(self._residency) - len(self._residency.waiting)

    @property
    def num_waiting(self) -> int:
        """The number of sequences that are not admitted yet or are preempted."""
        return len(self._residency.waiting)

    @property
    def num_preemptions(self) -> int:
        """How many times a sequence lost its pages to another one."""
        return self._residency.num_preemptions

    @property
    def has_work(self) -> bool:
        """Whether a sequence is unfinished. `schedule` may still return None until a commit."""
        return len(self._residency) > 0

    @property
    def retry_after_s(self) -> int:
        """The seconds that a refused caller should wait: about until the next sequence finishes."""
        return self._finishes.retry_after_s()

    def add(self, request: EngineRequest) -> Sequence:
        """Queues a request.

        Raises:
          RequestError: the prompt is empty, nothing is asked for, or the id is in use.
          ContextLengthError: the prompt and one token after it do not fit the context.
          QueueFullError: too many requests wait.
        """
        if request.request_id in self._residency:
            raise RequestError(f"request_id={request.request_id!r} is in use; expected an id of its own")
        check_request(request, max_context_tokens=self.max_context_tokens)
        if request.adapter is not None and self.adapters is None:
            raise RequestError(
                f"adapter {request.adapter.name!r} is asked for, but max_loras is 0; start with max_loras",
                param="model",
            )
        if self._residency.num_queued >= self.max_queue:
            retry_after_s = self.retry_after_s
            raise QueueFullError(
                f"{self.num_waiting} requests wait and max_queue={self.max_queue}; try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        sequence = Sequence(request, arrival=self._arrivals, max_context_tokens=self.max_context_tokens)
        self._arrivals += 1
        self._residency.add(sequence)
        return sequence

    def abort(self, request_id: str) -> Sequence | None:
        """Ends a sequence at once and frees its pages and slot. Returns None if the id is unknown or finished."""
        sequence = self._residency.get(request_id)
        if sequence is not None:
            self._residency.finish(sequence, "abort")
        return sequence

    def schedule(self) -> StepPlan | None:
        """Returns the next step, or None if nothing can run, at least before the next commit."""
        budget = self.max_batch_tokens
        num_decodes = 0
        chunks: list[Chunk] = []
        residency = self._residency
        residency.release_ending()
        running, waiting = residency.running, residency.waiting
        at = 0
        while budget and at < len(running):  # Preemption shortens the list from its end.
            sequence = running[at]
            if self._outgrew_rope(sequence):
                if sequence.num_in_flight:  # The host must know its tokens to compute it again.
                    at += 1
                    continue
                sequence.num_computed = 0
                sequence.rope_length = sequence.num_tokens
            missing_tokens = sequence.num_tokens - sequence.num_computed
            query_len = min(missing_tokens, budget)
            if missing_tokens == 1:
                num_decodes += 1
            else:
                query_len = min(query_len, self._prompt_budget(chunks, num_decodes))
                if query_len < 1:
                    at += 1
                    continue
            if not residency.grow(sequence, sequence.num_computed + query_len):
                break
            chunks.append(Chunk(sequence, query_len, admits=False))
            budget -= query_len
            at += 1
        if self.adapters is not None:
            self.adapters.begin_pass()
        at = 0
        budget = min(budget, self._prompt_budget(chunks, num_decodes))
        while budget > 0 and at < len(waiting):
            sequence = waiting[at]
            if not residency.has_adapter(sequence):
                at += 1
                continue
            if not residency.has_room(sequence):
                break
            if self._outgrew_rope(sequence):  # It was preempted before it could start again.
                sequence.rope_length = sequence.num_tokens
            residency.admit(at, self._clock())
            query_len = min(len(sequence.token_ids) - sequence.num_computed, budget)
            chunks.append(Chunk(sequence, query_len, admits=True))
            budget -= query_len
        if not chunks:
            return None
        plan = make_plan(chunks)
        self._advance(plan)
        self._uncommitted.append(plan)
        return plan

    def _prompt_budget(self, chunks: list[Chunk], num_decodes: int) -> int:
        """Returns the tokens that prompts may still take in a step with these chunks, `num_decodes` of which decode."""
        if not num_decodes:
            return self.max_batch_tokens
        return max(self.max_mixed_tokens, 2 * num_decodes) - sum(chunk.query_len for chunk in chunks)

    def commit(self, plan: StepPlan, sampled: Iterable[int]) -> list[tuple[Sequence, int | None, FinishReason | None]]:
        """Adds the tokens of a step to its sequences. Steps are committed in the order of scheduling.

        Args:
          plan: the oldest plan that is not committed.
          sampled: one token for each row of the plan that samples, in order.

        Returns:
          Tuples of the sequence, its new token, and why it finished or None. The token is None if the sequence ends
          with its prompt. Rows of sequences that ended in the meantime are left out.
        """
        if not self._uncommitted or self._uncommitted[0] is not plan:
            raise ValueError("commit() got a plan out of order; expected the oldest one not committed")
        self._uncommitted.popleft()
        results: list[tuple[Sequence, int | None, FinishReason | None]] = []
        sequences = [row.sequence for row in plan.rows if row.samples]
        for sequence, token in zip(sequences, sampled, strict=True):
            if sequence.state is SequenceState.FINISHED:
                continue
            sequence.num_in_flight -= 1
            sequence.token_ids.append(token)
            reason: FinishReason | None = None
            if token in sequence.request.stop_token_ids:
                reason = "stop"
            elif len(sequence.token_ids) >= sequence.end_len:
                reason = "length"
            if reason is not None:
                self._residency.finish(sequence, reason)
                self._finishes.record(self._clock())
            results.append((sequence, token, reason))
        if plan.readings:
            results += self._commit_finishing(plan)
        return results

    def _commit_finishing(self, plan: StepPlan) -> list[tuple[Sequence, None, FinishReason]]:
        """Ends the sequences that end with their prompt."""
        results: list[tuple[Sequence, None, FinishReason]] = []
        for reading in plan.readings:
            sequence = reading.row.sequence
            if reading.finishes and sequence.state is not SequenceState.FINISHED:
                sequence.num_in_flight -= 1
                reason: FinishReason = "length" if sequence.request.pooling is None else "stop"
                self._residency.finish(sequence, reason)
                self._finishes.record(self._clock())
                results.append((sequence, None, reason))
        return results

    def check_integrity(self) -> None:
        """Raises AssertionError if a page, a slot or a sequence is lost or owned twice. It may run at any time."""
        self._residency.check_integrity()

    def _advance(self, plan: StepPlan) -> None:
        """Moves the counters of a plan's sequences to their values after the step."""
        for row in plan.rows:
            row.sequence.num_computed = row.context_len
            row.sequence.num_in_flight += row.samples
        for reading in plan.readings:
            sequence = reading.row.sequence
            if reading.scored:
                sequence.num_scored = reading.scored.stop
            sequence.num_in_flight += reading.finishes

    def _outgrew_rope(self, sequence: Sequence) -> bool:
        limit = self.rope_switch_length
        return limit is not None and sequence.rope_length <= limit < sequence.num_tokens
