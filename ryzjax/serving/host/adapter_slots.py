"""AdapterSlots: keeps track of the adapters in the device's slots and of the sequences that use them.

A sequence holds the slot of its adapter from its first step to its end, also while it is preempted. A slot is rewritten
only if no sequence uses it. If an adapter is in no slot and every slot is in use, its sequences wait without blocking
others. One slot is then reserved for the adapter: sequences behind it in the queue cannot start with the adapter that
is in that slot, so the slot becomes idle at some time. No sequence therefore waits forever, whatever arrives.
"""

from __future__ import annotations

from collections.abc import Iterable

from ryzjax.errors import ConfigError
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["AdapterSlots"]


class _Slot:
    """One slot. `users` is the number of sequences that use it, `kept_for` the adapter it is reserved for."""

    __slots__ = ("adapter", "is_retired", "kept_for", "last_use", "users")

    def __init__(self) -> None:
        self.adapter: ServedAdapter | None = None
        self.users = 0
        self.last_use = 0
        self.is_retired = False
        self.kept_for: ServedAdapter | None = None


class AdapterSlots:
    """Assigns the slots 0 to `count` - 1. The least recently used idle slot is rewritten first.

    Args:
      count: the number of slots on the device.

    Raises:
      ConfigError: `count` is below 1.
    """

    def __init__(self, count: int):
        if count < 1:
            raise ConfigError(f"max_loras={count} holds no adapter; expected at least 1")
        self.count = count
        self._slots = [_Slot() for _ in range(count)]
        self._slot_of: dict[ServedAdapter, int] = {}
        self._loads: list[tuple[int, ServedAdapter]] = []
        self._uses = 0

    @property
    def num_loaded(self) -> int:
        """The number of slots that hold an adapter."""
        return len(self._slot_of)

    @property
    def num_in_use(self) -> int:
        """The number of slots that sequences use."""
        return sum(slot.users > 0 for slot in self._slots)

    def begin_pass(self) -> None:
        """Drops all reservations before a pass over the waiting sequences.

        Each pass makes them again from the current queue, so an adapter without waiting sequences has none.
        """
        for slot in self._slots:
            slot.kept_for = None

    def is_available(self, adapter: ServedAdapter) -> bool:
        """Returns whether one more sequence can start with this adapter. If not, a slot is reserved for it."""
        index = self._slot_of.get(adapter)
        if index is not None:
            return self._slots[index].kept_for is None
        if self._idle_for(adapter) is not None:
            return True
        self._keep_one(adapter)
        return False

    def acquire(self, adapter: ServedAdapter) -> int:
        """Returns the slot for one more sequence, after `is_available`. `take_loads` says what must be written."""
        index = self._slot_of.get(adapter)
        if index is None:
            index = self._idle_for(adapter)
            assert index is not None, "ask is_available() first"
            self._put(index, adapter)
        slot = self._slots[index]
        slot.users += 1
        self._touch(slot)
        return index

    def release(self, index: int) -> None:
        """Releases the slot of a sequence that has ended.

        Raises:
          ValueError: no sequence uses the slot.
        """
        slot = self._slots[index]
        if not slot.users:
            raise ValueError(f"slot {index} is released but not in use; expected a slot of acquire(), released once")
        slot.users -= 1
        if not slot.users and slot.is_retired:
            self._empty(index)

    def prefetch(self, adapter: ServedAdapter) -> bool:
        """Assigns an empty slot to an adapter before its first sequence. Returns False if there is none."""
        if adapter in self._slot_of:
            return True
        index = next((i for i, slot in enumerate(self._slots) if slot.adapter is None), None)
        if index is not None:
            self._put(index, adapter)
        return index is not None

    def retire(self, adapter: ServedAdapter) -> None:
        """Retires a version that no new request uses. Its slot is emptied when its last sequence ends."""
        index = self._slot_of.get(adapter)
        if index is not None:
            self._slots[index].is_retired = True
            if not self._slots[index].users:
                self._empty(index)

    def take_loads(self) -> list[tuple[int, ServedAdapter]]:
        """Returns the (slot, adapter) pairs that the device must write before the next step, in order."""
        loads, self._loads = self._loads, []
        return loads

    def check_integrity(self, held: Iterable[tuple[int, ServedAdapter]]) -> None:
        """Raises AssertionError if the users of a slot are not the sequences that hold it.

        Args:
          held: the (slot, adapter) of each sequence that holds one.
        """
        users = [0] * self.count
        for index, adapter in held:
            if self._slots[index].adapter is not adapter:
                raise AssertionError(f"a sequence runs with slot {index}, which does not hold {adapter.name!r}")
            users[index] += 1
        counted = [slot.users for slot in self._slots]
        if users != counted:
            raise AssertionError(f"adapter slots count {counted} users, sequences hold {users}")
        there = {slot.adapter: i for i, slot in enumerate(self._slots) if slot.adapter is not None}
        if there != self._slot_of:
            raise AssertionError(f"adapters are in {there}, but known to be in {self._slot_of}")
        if any(slot.is_retired and not slot.users for slot in self._slots):
            raise AssertionError("a retired adapter is in a slot that nobody uses")

    def _touch(self, slot: _Slot) -> None:
        self._uses += 1
        slot.last_use = self._uses

    def _idle_for(self, adapter: ServedAdapter) -> int | None:
        """Returns the idle slot to rewrite: an empty one, or the least recently used one that is not reserved."""
        idle = [i for i, slot in enumerate(self._slots) if not slot.users and slot.kept_for in (None, adapter)]
        return min(idle, key=lambda i: (self._slots[i].adapter is not None, self._slots[i].last_use), default=None)

    def _keep_one(self, adapter: ServedAdapter) -> None:
        """Reserves the least recently used slot for a waiting adapter, unless it has one or all are reserved."""
        if any(slot.kept_for is adapter for slot in self._slots):
            return
        others = [slot for slot in self._slots if slot.kept_for is None]
        if others:
            min(others, key=lambda slot: slot.last_use).kept_for = adapter

    def _put(self, index: int, adapter: ServedAdapter) -> None:
        self._empty(index)
        self._slots[index].adapter = adapter
        self._touch(self._slots[index])
        self._slot_of[adapter] = index
        self._loads.append((index, adapter))

    def _empty(self, index: int) -> None:
        slot = self._slots[index]
        if slot.adapter is not None:
            del self._slot_of[slot.adapter]
        slot.adapter, slot.is_retired = None, False
