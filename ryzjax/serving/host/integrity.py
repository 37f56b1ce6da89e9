"""check_residency: proves that no page, slot or sequence is lost or owned twice."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as ListOf
from itertools import pairwise

from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.sequence import Sequence, SequenceState

__all__ = ["check_residency"]


def check_residency(
    *,
    pool: PagePool,
    adapters: AdapterSlots | None,
    max_sequences: int,
    free_slots: ListOf[int],
    running: ListOf[Sequence],
    waiting: Collection[Sequence],
    sequences: Collection[Sequence],
) -> None:
    """Raises AssertionError if a page, a slot or a sequence is lost or owned twice, or if an order is broken.

    Args:
      pool: the page pool.
      adapters: the slots of adapters, or None.
      max_sequences: the number of slots.
      free_slots: the slots that no sequence has.
      running: the running sequences in order.
      waiting: the waiting sequences in order.
      sequences: all unfinished sequences.
    """
    pool.check_integrity(sequence.pages for sequence in sequences)
    slots = [sequence.slot for sequence in sequences if sequence.slot is not None]
    if sorted([*slots, *free_slots]) != list(range(max_sequences)):
        raise AssertionError(f"slots in use {slots} and free {free_slots} are not all {max_sequences}")
    order = [*running, *waiting]
    if adapters is None and any(a.arrival >= b.arrival for a, b in pairwise(order)):
        raise AssertionError(f"not in order of arrival: running {running}, waiting {list(waiting)}")
    if any(a.admission >= b.admission for a, b in pairwise(running)):
        raise AssertionError(f"not in order of admission: running {running}")
    if adapters is not None:
        held = ((s.adapter_slot, s.request.adapter) for s in sequences)
        adapters.check_integrity((i, adapter) for i, adapter in held if i is not None and adapter is not None)
    for sequence in running:
        covered = len(sequence.pages) * pool.page_size_tokens
        if sequence.state is not SequenceState.RUNNING or sequence.slot is None or sequence.num_computed > covered:
            raise AssertionError(f"running without state, slot or pages: {sequence}")
    for sequence in waiting:
        if sequence.state is not SequenceState.WAITING or sequence.slot is not None or sequence.pages:
            raise AssertionError(f"waiting with a state, slot or pages of its own: {sequence}")
    for sequence in set(sequences).difference(order):
        if not (sequence.state is SequenceState.RUNNING and sequence.num_in_flight and sequence.is_ending):
            raise AssertionError(f"neither running, waiting nor ending: {sequence}")
