"""Residency: which sequences run and which wait, and the pages and slots that the running ones hold.

`Scheduler` decides who runs. This class carries the decision out, so that pages, slots and queues change together.
"""

from __future__ import annotations

from collections import deque

from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.integrity import check_residency
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.messages.request import FinishReason

__all__ = ["Residency"]


class Residency:
    """The unfinished sequences of an engine and what each of them holds.

    Args:
      pool: the KV cache pages. This object is their only user.
      max_sequences: the number of slots.
      adapters: the slots of adapters, or None if no adapters are served.

    Attributes:
      running: the sequences that hold a slot and pages, in order of admission.
      waiting: the sequences that are not admitted yet or are preempted, in the order in which they will be admitted.
      num_preemptions: how many times a sequence lost its pages.
    """

    def __init__(self, *, pool: PagePool, max_sequences: int, adapters: AdapterSlots | None):
        self.pool = pool
        self.max_sequences = max_sequences
        self.adapters = adapters
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_preemptions = 0
        self._sequences: dict[str, Sequence] = {}
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._admissions = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def get(self, request_id: str) -> Sequence | None:
        """Returns an unfinished sequence, or None if the id is unknown or finished."""
        return self._sequences.get(request_id)

    @property
    def num_queued(self) -> int:
        """The number of waiting sequences beyond those for which a slot is free. It can be negative."""
        return len(self.waiting) - len(self._free_slots)

    def add(self, sequence: Sequence) -> None:
        """Appends a new sequence to the waiting ones."""
        self._sequences[sequence.request.request_id] = sequence
        self.waiting.append(sequence)

    def has_adapter(self, sequence: Sequence) -> bool:
        """Returns whether the sequence needs no adapter, already holds its slot, or can get one."""
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return True
        assert self.adapters is not None, "checked when it was added"
        return self.adapters.is_available(adapter)

    def has_room(self, sequence: Sequence) -> bool:
        """Returns whether there are a slot and pages for all known tokens of a waiting sequence.

        One page is left free for each running sequence. Otherwise the next page of a decoding sequence would preempt
        the new one, and its prompt would be computed again and again.
        """
        # A sequence is computed again from its token ids, so the host must know the tokens in flight first.
        if not self._free_slots or sequence.num_in_flight:
            return False
        return self.pool.pages_for(len(sequence.token_ids)) + len(self.running) <= self.pool.num_free

    def admit(self, at: int, now_s: float) -> Sequence:
        """Moves the waiting sequence at an index to the end of `running`, after `has_adapter` and `has_room`.

        Args:
          at: the index in `waiting`.
          now_s: the monotonic time.
        """
        sequence = self.waiting[at]
        del self.waiting[at]
        adapter = sequence.request.adapter
        if adapter is not None and sequence.adapter_slot is None:
            assert self.adapters is not None, "checked when it was added"
            sequence.adapter_slot = self.adapters.acquire(adapter)
        sequence.pages = self._allocate(self.pool.pages_for(len(sequence.token_ids)))
        sequence.slot = self._free_slots.pop()
        sequence.state = SequenceState.RUNNING
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now_s
        self._admissions += 1
        sequence.admission = self._admissions
        self.running.append(sequence)
        return sequence

    def grow(self, sequence: Sequence, context_len: int) -> bool:
        """Gives a running sequence pages up to `context_len`. Returns False if the sequence itself was preempted.

        If too few pages are free, the sequences that were admitted last lose theirs.
        """
        missing = self.pool.pages_for(context_len) - len(sequence.pages)
        while missing > self.pool.num_free:
            victim = self.running[-1]
            self._preempt_last()
            if victim is sequence:
                return False
        if missing > 0:
            sequence.pages += self._allocate(missing)
        return True

    def release_ending(self) -> None:
        """Frees the pages and slots of sequences whose last token or vector only has to be read."""
        ending = [sequence for sequence in self.running if sequence.is_ending]
        for sequence in ending:
            self.running.remove(sequence)
            self._release(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence and frees all that it holds."""
        del self._sequences[sequence.request.request_id]
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.slot is not None:
            self.running.remove(sequence)
            self._release(sequence)
        if sequence.adapter_slot is not None:
            assert self.adapters is not None, "it was acquired there"
            self.adapters.release(sequence.adapter_slot)
            sequence.adapter_slot = None
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def check_integrity(self) -> None:
        """Raises AssertionError if a page, a slot or a sequence is lost or owned twice. It may run at any time."""
        check_residency(
            pool=self.pool,
            adapters=self.adapters,
            max_sequences=self.max_sequences,
            free_slots=self._free_slots,
            running=self.running,
            waiting=self.waiting,
            sequences=self._sequences.values(),
        )

    def _preempt_last(self) -> None:
        """Takes the pages and the slot of the sequence that was admitted last. It will be computed again."""
        sequence = self.running.pop()
        self._release(sequence)
        sequence.num_computed = 0
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _allocate(self, count: int) -> list[int]:
        pages = self.pool.allocate(count)
        assert pages is not None, "checked by the caller"
        return pages

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None, "only admitted sequences hold anything"
        # In reverse, so that the stack of free pages hands them out in order of position again.
        self.pool.free(reversed(sequence.pages))
        sequence.pages = []
        self._free_slots.append(sequence.slot)
        sequence.slot = None
