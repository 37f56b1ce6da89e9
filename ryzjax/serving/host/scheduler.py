"""Scheduler: which sequences take part in the next step, and with which tokens.

First come, first served. Every running sequence that decodes gets its token; what is left of the budget
goes to the chunk of the running sequence whose prompt is not finished, then to waiting sequences. Arrival
orders everything: sequences that run arrived before those that wait, so only the last one running can have
an unfinished prompt, and one walk over the running sequences serves decode rows first.

A sequence gets the pages of all its known tokens when it is admitted, and one more page at a time as it
grows. When none is free, the sequence that was admitted last gives up its pages and waits, ahead of the others,
to be computed again (preemption by recompute). The oldest is never preempted for another, and one sequence
of full length fits the pool, so the oldest always finishes, and then the next is the oldest.

A sequence whose adapter can have no slot now (`AdapterSlots`) keeps its place in the queue while others pass it:
the order is then that of admission.

Steps may overlap: `schedule` for step n+1 may come before `commit` of step n. A sequence's next token is
then unknown to the host but known to the device, which runs steps in order. Pages and slots can therefore
be reused as soon as no *later* step needs them, whatever is still in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

from ryzjax.errors import CapacityError, ConfigError, QueueFullError, RequestError
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.admission import check_request
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.retry import FinishRate
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.host.step_plan import Chunk, StepPlan, make_plan
from ryzjax.serving.messages.request import EngineRequest, FinishReason

__all__ = ["Scheduler"]


class Scheduler:
    """Continuous batching over a page pool; not thread-safe.

    Args:
      pool: pages of the KV cache; this scheduler is its only user.
      max_sequences: sequences that run at once; also the number of slots.
      max_batch_tokens: most tokens of a step.
      max_mixed_tokens: most tokens of a step in which some sequences decode and others compute their prompts, or two
        for every sequence that decodes, if that is more. It bounds how much longer one client's prompt makes the steps
        of another's stream. None is `max_batch_tokens`.
      max_context_tokens: most tokens of a sequence, prompt and output.
      max_queue: requests that may wait beyond those for which a slot is free.
      rope_switch_length: tokens after which all of a sequence's rotations change (LongRoPE): one that grows past
        it is computed again from its first token, in place. None for models without.
      adapters: slots of adapters; None where none are served.
      clock: seconds, monotonic.

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
        self.num_preemptions = 0
        self._clock = clock
        self._finishes = FinishRate()
        self._arrivals = 0
        self._admissions = 0
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._uncommitted: deque[StepPlan] = deque()

    @property
    def num_running(self) -> int:
        """Admitted sequences, those whose last token is in flight included."""
        return len(self._sequences) - len(self._waiting)

    @property
    def num_waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a sequence is unfinished. `schedule` may still be None until a commit."""
        return bool(self._sequences)

    @property
    def retry_after_s(self) -> int:
        """Seconds a refused caller should wait: about when the next sequence finishes."""
        return self._finishes.retry_after_s()

    def add(self, request: EngineRequest) -> Sequence:
        """Queues a request.

        Raises:
          RequestError: its prompt is empty, it asks for nothing, or its id is in use.
          ContextLengthError: the prompt, or a token after it, does not fit.
          QueueFullError: too many requests wait.
        """
        if request.request_id in self._sequences:
            raise RequestError(f"request_id={request.request_id!r} is in use; expected an id of its own")
        check_request(request, max_context_tokens=self.max_context_tokens)
        if request.adapter is not None and self.adapters is None:
            raise RequestError(
                f"adapter {request.adapter.name!r} is asked for, but max_loras is 0; start with max_loras",
                param="model",
            )
        if len(self._waiting) - len(self._free_slots) >= self.max_queue:
            retry_after_s = self.retry_after_s
            raise QueueFullError(
                f"{len(self._waiting)} requests wait and max_queue={self.max_queue}; try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        sequence = Sequence(request, arrival=self._arrivals, max_context_tokens=self.max_context_tokens)
        self._arrivals += 1
        self._sequences[request.request_id] = sequence
        self._waiting.append(sequence)
        return sequence

    def abort(self, request_id: str) -> Sequence | None:
        """Ends a sequence at once, with its pages and slot free; None if the id is unknown (or done)."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, "abort")
        return sequence

    def schedule(self) -> StepPlan | None:
        """The next step; None where nothing can run (before a commit, at least)."""
        budget = self.max_batch_tokens
        num_decodes = 0
        chunks: list[Chunk] = []
        self._release_ending()
        running = self._running
        at = 0
        while budget and at < len(running):  # preemption shortens the list from its end
            sequence = running[at]
            if self._outgrew_rope(sequence):
                if sequence.num_in_flight:  # its tokens must be on the host to be computed again
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
            if not self._grow(sequence, sequence.num_computed + query_len):
                break
            chunks.append(Chunk(sequence, query_len, admits=False))
            budget -= query_len
            at += 1
        if self.adapters is not None:
            self.adapters.begin_pass()
        at = 0
        budget = min(budget, self._prompt_budget(chunks, num_decodes))
        while budget > 0 and at < len(self._waiting):
            sequence = self._waiting[at]
            if not self._has_adapter(sequence):
                at += 1
                continue
            if not self._has_room(sequence):
                break
            del self._waiting[at]
            self._admit(sequence)
            query_len = min(len(sequence.token_ids) - sequence.num_computed, budget)
            chunks.append(Chunk(sequence, query_len, admits=True))
            budget -= query_len
        if not chunks:
            return None
        plan = make_plan(chunks)
        self._uncommitted.append(plan)
        return plan

    def _prompt_budget(self, chunks: list[Chunk], num_decodes: int) -> int:
        """Tokens that prompts may still take in a step with these chunks, so many of which decode."""
        if not num_decodes:
            return self.max_batch_tokens
        return max(self.max_mixed_tokens, 2 * num_decodes) - sum(chunk.query_len for chunk in chunks)

    def commit(self, plan: StepPlan, sampled: Iterable[int]) -> list[tuple[Sequence, int | None, FinishReason | None]]:
        """Takes in the tokens of a step; steps are committed in the order they were scheduled.

        Args:
          plan: the oldest one not committed.
          sampled: a token for each of the plan's rows that sample, in order.

        Returns:
          (sequence, its new token, why it finished or None); the token is None where the sequence ends with its
          prompt. Rows of sequences that ended meanwhile are left out.
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
                self._finish(sequence, reason)
                self._finishes.record(self._clock())
            results.append((sequence, token, reason))
        if plan.readings:
            results += self._commit_finishing(plan)
        return results

    def _commit_finishing(self, plan: StepPlan) -> list[tuple[Sequence, None, FinishReason]]:
        """Ends the sequences whose prompt was all they asked for."""
        results: list[tuple[Sequence, None, FinishReason]] = []
        for reading in plan.readings:
            sequence = reading.row.sequence
            if reading.finishes and sequence.state is not SequenceState.FINISHED:
                sequence.num_in_flight -= 1
                reason: FinishReason = "length" if sequence.request.pooling is None else "stop"
                self._finish(sequence, reason)
                self._finishes.record(self._clock())
                results.append((sequence, None, reason))
        return results

    def check_integrity(self) -> None:
        """Raises AssertionError where a page, a slot or a sequence is lost or owned twice; right at any time."""
        self.pool.check_integrity(sequence.pages for sequence in self._sequences.values())
        slots = [sequence.slot for sequence in self._sequences.values() if sequence.slot is not None]
        if sorted(slots + self._free_slots) != list(range(self.max_sequences)):
            raise AssertionError(f"slots in use {slots} and free {self._free_slots} are not all {self.max_sequences}")
        order = [*self._running, *self._waiting]
        if self.adapters is None and any(a.arrival >= b.arrival for a, b in pairwise(order)):
            raise AssertionError(f"not in order of arrival: running {self._running}, waiting {list(self._waiting)}")
        if any(a.admission >= b.admission for a, b in pairwise(self._running)):
            raise AssertionError(f"not in order of admission: running {self._running}")
        if self.adapters is not None:
            held = ((s.adapter_slot, s.request.adapter) for s in self._sequences.values())
            self.adapters.check_integrity((i, adapter) for i, adapter in held if i is not None and adapter is not None)
        for sequence in self._running:
            covered = len(sequence.pages) * self.pool.page_size_tokens
            if sequence.state is not SequenceState.RUNNING or sequence.slot is None or sequence.num_computed > covered:
                raise AssertionError(f"running without state, slot or pages: {sequence}")
        for sequence in self._waiting:
            if sequence.state is not SequenceState.WAITING or sequence.slot is not None or sequence.pages:
                raise AssertionError(f"waiting with a state, slot or pages of its own: {sequence}")
        for sequence in set(self._sequences.values()).difference(order):
            if not (sequence.state is SequenceState.RUNNING and sequence.num_in_flight and sequence.is_ending):
                raise AssertionError(f"neither running, waiting nor ending: {sequence}")

    def _outgrew_rope(self, sequence: Sequence) -> bool:
        limit = self.rope_switch_length
        return limit is not None and sequence.rope_length <= limit < sequence.num_tokens

    def _release_ending(self) -> None:
        """Frees what sequences hold that only wait for their last token, or vector, to be read."""
        ending = [sequence for sequence in self._running if sequence.is_ending]
        for sequence in ending:
            self._running.remove(sequence)
            self._release(sequence)

    def _grow(self, sequence: Sequence, context_len: int) -> bool:
        """Gives a running sequence pages up to `context_len`; False if it had to be preempted itself."""
        missing = self.pool.pages_for(context_len) - len(sequence.pages)
        while missing > self.pool.num_free:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.pages += self._allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert self._running[-1] is sequence, "only the latest admitted is preempted, so that order is kept"
        self._running.pop()
        self._release(sequence)
        sequence.num_computed = 0
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.appendleft(sequence)

    def _has_adapter(self, sequence: Sequence) -> bool:
        """Whether the sequence needs no adapter, holds its slot already, or can have one."""
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return True
        assert self.adapters is not None, "checked when it was added"
        return self.adapters.is_available(adapter)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether there are a slot and pages for all the known tokens of a waiting sequence.

        A page is left free for each sequence that runs: without them the next page a decode needs would
        preempt the newcomer, and its prompt would be computed over and over.
        """
        # A token in flight is needed on the host: the sequence is computed again from its ids.
        if not self._free_slots or sequence.num_in_flight:
            return False
        return self.pool.pages_for(len(sequence.token_ids)) + len(self._running) <= self.pool.num_free

    def _admit(self, sequence: Sequence) -> None:
        """Gives a sequence, already taken out of the queue, what `_has_room` and `_has_adapter` have found."""
        if self._outgrew_rope(sequence):  # preempted before it could begin again
            sequence.rope_length = sequence.num_tokens
        adapter = sequence.request.adapter
        if adapter is not None and sequence.adapter_slot is None:
            assert self.adapters is not None, "checked when it was added"
            sequence.adapter_slot = self.adapters.acquire(adapter)
        sequence.pages = self._allocate(self.pool.pages_for(len(sequence.token_ids)))
        sequence.slot = self._free_slots.pop()
        sequence.state = SequenceState.RUNNING
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
        self._admissions += 1
        sequence.admission = self._admissions
        self._running.append(sequence)

    def _allocate(self, count: int) -> list[int]:
        pages = self.pool.allocate(count)
        assert pages is not None, "checked by the caller"
        return pages

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        del self._sequences[sequence.request.request_id]
        if sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        elif sequence.slot is not None:
            self._running.remove(sequence)
            self._release(sequence)
        if sequence.adapter_slot is not None:
            assert self.adapters is not None, "it was acquired there"
            self.adapters.release(sequence.adapter_slot)
            sequence.adapter_slot = None
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None, "only admitted sequences hold anything"
        # Backwards, so that the stack of free pages hands them out in order of position again.
        self.pool.free(reversed(sequence.pages))
        sequence.pages = []
        self._free_slots.append(sequence.slot)
        sequence.slot = None
