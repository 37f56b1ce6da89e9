"""Scheduler: who runs in a step. First come, first served; chunked prefill; preemption by recompute.

A step first takes one token of every running sequence that decodes, then fills its token budget with prefill
chunks, running sequences before waiting ones, in the order of arrival. A sequence is admitted when the pages of
all its known tokens are free, so only growth by decoding can run out of pages: then the sequence that arrived
last gives up its own and goes back to the head of the queue.

`schedule` may run one step ahead of `commit`: a token that is still on the device counts as in flight. It is
read there by slot, and what only its value can tell (that it ends the sequence) is found a step late; the row
already planned is then ignored.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import deque

from ryzjax.errors import CapacityError, ConfigError, QueueFullError
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.schedule import PlannedRow, StepPlan
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.request import EngineRequest, FinishReason

__all__ = ["Scheduler"]

_RATE_DECAY = 0.1
"""Weight of the newest gap between two finished sequences in their running mean."""


class Scheduler:
    """Owns the sequences, their pages and their slots.

    Args:
      pool: pages.
      max_sequences: rows of a step, and slots.
      max_batch_tokens: tokens of a step.
      max_context_tokens: longest sequence; one must fit the pool.
      max_queue: sequences that may wait.

    Raises:
      CapacityError: the pool cannot hold one sequence of max_context_tokens.
    """

    def __init__(
        self, *, pool: PagePool, max_sequences: int, max_batch_tokens: int, max_context_tokens: int, max_queue: int
    ):
        if max_batch_tokens < max_sequences:
            raise ConfigError(
                f"max_batch_tokens={max_batch_tokens} is less than max_sequences={max_sequences}: not every running "
                "sequence could decode in a step; raise the one or lower the other"
            )
        if pool.pages_for(max_context_tokens) > pool.num_usable:
            raise CapacityError(
                f"one sequence of max_context_tokens={max_context_tokens} needs {pool.pages_for(max_context_tokens)} "
                f"pages, the pool has {pool.num_usable}; lower max_context_tokens or give the KV cache more memory"
            )
        self.pool = pool
        self.num_preemptions = 0
        self._max_batch_tokens = max_batch_tokens
        self._max_queue = max_queue
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._num_slots = max_sequences
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # by arrival
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0
        self._finish_gap_s = 0.0
        self._last_finish_s: float | None = None

    @property
    def num_running(self) -> int:
        """Sequences with pages and a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences without."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self._by_id)

    def add(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
          QueueFullError: max_queue sequences wait already.
        """
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError(
                f"the queue is full: {len(self._waiting)} requests wait, max_queue={self._max_queue}; try again later",
                retry_after_s=max(1, round(self._finish_gap_s * len(self._waiting))),
            )
        sequence = Sequence(request=request, arrival=self._arrivals, token_ids=list(request.prompt_token_ids))
        self._arrivals += 1
        self._by_id[request.request_id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> Sequence | None:
        """Ends a sequence at once and returns it; None where there is no such sequence."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self._finish(sequence)
        return sequence

    def schedule(self) -> StepPlan | None:
        """The next step; None where nothing can run before a commit."""
        decodes = self._plan_decodes()
        chunks: list[tuple[Sequence, int, bool]] = []
        budget = self._max_batch_tokens - len(decodes)
        for sequence in self._running:
            if budget > 0 and sequence.num_left > 1:
                count = min(sequence.num_left, budget)
                chunks.append((sequence, count, False))
                budget -= count
        while budget > 0 and (sequence := self._admit_next()) is not None:
            count = min(sequence.num_left, budget)
            (decodes if sequence.num_left == 1 else chunks).append((sequence, count, True))
            budget -= count
        return self._plan(decodes, chunks) if decodes or chunks else None

    def commit(self, plan: StepPlan, sampled: list[int]) -> list[tuple[Sequence, int, FinishReason | None]]:
        """Takes the tokens a step chose.

        Args:
          plan: the oldest plan not committed yet.
          sampled: one token per row that samples, in order.

        Returns:
          (sequence, token, why it ended or None); rows of sequences that ended meanwhile are left out.
        """
        assert len(sampled) == plan.num_samples, f"{len(sampled)} tokens for {plan.num_samples} sampling rows"
        taken: list[tuple[Sequence, int, FinishReason | None]] = []
        tokens = iter(sampled)
        for row in plan.rows:
            if not row.samples:
                continue
            token, sequence = next(tokens), row.sequence
            if sequence.state is SequenceState.FINISHED:
                continue
            sequence.num_in_flight -= 1
            sequence.token_ids.append(token)
            reason: FinishReason | None = None
            if token in sequence.request.stop_token_ids:
                reason = "stop"
            elif sequence.output_len >= sequence.request.max_new_tokens:
                reason = "length"
            if reason is not None:
                self._finish(sequence)
            taken.append((sequence, token, reason))
        return taken

    def check_integrity(self) -> None:
        """Raises AssertionError where a page, a slot or a sequence is lost."""
        self.pool.check_integrity(sequence.pages for sequence in self._by_id.values())
        slots = [sequence.slot for sequence in self._running]
        assert sorted([*slots, *self._free_slots]) == list(range(self._num_slots)), "a slot is lost or has two owners"
        assert len(self._by_id) == len(self._running) + len(self._waiting), "a sequence is in no queue"
        assert all(not s.pages and s.slot is None for s in self._waiting), "a waiting sequence owns pages or a slot"

    def _plan_decodes(self) -> list[tuple[Sequence, int, bool]]:
        planned: list[tuple[Sequence, int, bool]] = []
        for sequence in list(self._running):
            # Preempted while an earlier one was given pages; or nothing to do until the commit.
            if sequence.state is not SequenceState.RUNNING or sequence.num_left != 1 or sequence.ends_in_flight:
                continue
            if self._grow(sequence):
                planned.append((sequence, 1, False))
        return planned

    def _grow(self, sequence: Sequence) -> bool:
        """Makes room for one more token, preempting from the back; False where that meant the sequence itself."""
        if self.pool.pages_for(sequence.num_computed + 1) <= len(sequence.pages):
            return True
        while (pages := self.pool.allocate(1)) is None:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages.extend(pages)
        return True

    def _admit_next(self) -> Sequence | None:
        if not self._waiting or not self._free_slots or self._waiting[0].num_in_flight:
            return None
        sequence = self._waiting[0]
        pages = self.pool.allocate(self.pool.pages_for(sequence.num_tokens))
        if pages is None:
            return None
        self._waiting.popleft()
        sequence.pages, sequence.slot = pages, self._free_slots.pop()
        sequence.state = SequenceState.RUNNING
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = time.monotonic()
        insort(self._running, sequence, key=lambda s: s.arrival)
        return sequence

    def _plan(self, decodes: list[tuple[Sequence, int, bool]], chunks: list[tuple[Sequence, int, bool]]) -> StepPlan:
        rows: list[PlannedRow] = []
        start = samples = 0
        for sequence, count, admits in (*decodes, *chunks):
            assert sequence.slot is not None
            first = sequence.num_computed
            end = first + count
            row_samples = end == sequence.num_tokens
            output_index = sequence.output_len + sequence.num_in_flight
            rows.append(
                PlannedRow(
                    sequence=sequence,
                    slot=sequence.slot,
                    query_start=start,
                    query_len=count,
                    context_len=end,
                    token_ids=sequence.token_ids[first:end] if end <= len(sequence.token_ids) else None,
                    samples=row_samples,
                    admits=admits,
                    output_index=output_index,
                    ban_stops=output_index < sequence.request.params.min_tokens,
                )
            )
            sequence.num_computed = end
            sequence.num_in_flight += row_samples
            start += count
            samples += row_samples
        return StepPlan(rows=tuple(rows), num_decode_rows=len(decodes), num_tokens=start, num_samples=samples)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_computed = 0
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _finish(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED
        del self._by_id[sequence.request.request_id]
        now = time.monotonic()
        if self._last_finish_s is not None:
            self._finish_gap_s += _RATE_DECAY * (now - self._last_finish_s - self._finish_gap_s)
        self._last_finish_s = now

    def _release(self, sequence: Sequence) -> None:
        """Pages and slot go back. A step in flight may still write there: later steps run after it."""
        self._running.remove(sequence)
        self.pool.free(sequence.pages)
        assert sequence.slot is not None
        self._free_slots.append(sequence.slot)
        sequence.pages, sequence.slot = [], None
