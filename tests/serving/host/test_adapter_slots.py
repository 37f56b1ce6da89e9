"""AdapterSlots: which adapter gets a slot, which waits, and that none waits forever."""

from __future__ import annotations

import pytest

from ryzjax.errors import ConfigError, RequestError
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.messages.adapter import ServedAdapter
from tests.serving.host.simulation import Simulation, alone, make_adapter, make_request, make_scheduler

A, B, C = (make_adapter(name, i) for i, name in enumerate("abc", start=1))


def take(slots: AdapterSlots, adapter: ServedAdapter) -> int | None:
    return slots.acquire(adapter) if slots.is_available(adapter) else None


def test_the_least_recently_used_idle_slot_is_written() -> None:
    slots = AdapterSlots(2)
    assert take(slots, A) == 0 and take(slots, B) == 1
    assert slots.take_loads() == [(0, A), (1, B)]
    slots.release(0)
    slots.release(1)
    assert take(slots, A) == 0  # the adapter is still in its slot, so nothing is written
    slots.release(0)
    assert slots.take_loads() == []
    assert take(slots, C) == 1
    assert slots.take_loads() == [(1, C)]
    slots.check_integrity([(1, C)])
    assert (slots.num_loaded, slots.num_in_use) == (2, 1)


def test_a_slot_is_kept_for_who_waits() -> None:
    slots = AdapterSlots(1)
    take(slots, A)
    slots.begin_pass()
    assert take(slots, B) is None
    assert take(slots, A) is None  # waits behind B in the queue, although A is loaded
    slots.release(0)
    slots.begin_pass()
    assert take(slots, B) == 0
    # An adapter that has left the queue keeps no place in it.
    slots.begin_pass()
    assert take(slots, C) is None
    slots.begin_pass()
    assert take(slots, B) == 0


def test_retired_versions_leave_when_their_last_user_does() -> None:
    slots = AdapterSlots(2)
    take(slots, A)
    take(slots, A)
    slots.retire(A)
    slots.release(0)
    assert slots.num_loaded == 1
    slots.release(0)
    assert slots.num_loaded == 0
    slots.retire(B)  # B has no slot, so this does nothing
    assert slots.prefetch(B) and slots.prefetch(C) and not slots.prefetch(A)
    slots.retire(B)
    assert slots.num_loaded == 1 and slots.num_in_use == 0
    slots.check_integrity([])


def test_misuse() -> None:
    slots = AdapterSlots(1)
    with pytest.raises(ValueError, match="slot 0 is released but not in use"):
        slots.release(0)
    with pytest.raises(ConfigError, match="max_loras=0"):
        AdapterSlots(0)
    take(slots, A)
    with pytest.raises(AssertionError, match="count"):
        slots.check_integrity([])
    with pytest.raises(AssertionError, match="does not hold 'b'"):
        slots.check_integrity([(0, B)])
    with pytest.raises(RequestError, match="max_loras is 0"):
        make_scheduler().add(make_request("r", [1], adapter=A))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stream_of_one_adapter_starves_no_other(overlap: bool) -> None:
    """More requests for A arrive than can run. The request for B among them still runs soon."""
    simulation = Simulation(make_scheduler(adapter_slots=1, max_sequences=2), overlap=overlap)
    requests = [make_request("a0", [1], adapter=A, max_new_tokens=6), make_request("b", [2], adapter=B)]
    for request in requests:
        simulation.add(request)
    base = make_request("base", [3], max_new_tokens=2)
    for i in range(1, 40):
        simulation.step()
        if i == 2:
            simulation.add(base)
        requests.append(make_request(f"a{i}", [1, i % 19], adapter=A, max_new_tokens=6))
        simulation.add(requests[-1])
        if "b" in simulation.reasons:
            break
    assert "b" in simulation.reasons and i < 30
    assert "base" in simulation.reasons  # it needs no adapter, so it does not wait for a slot
    simulation.drain()
    for request in requests:
        assert simulation.outputs[request.request_id] == alone(request, 32)[0]


def test_who_waits_for_a_slot_holds_up_nobody() -> None:
    simulation = Simulation(make_scheduler(adapter_slots=1, max_sequences=4), overlap=False)
    for request_id, adapter in (("a", A), ("b", B), ("base", None)):
        simulation.add(make_request(request_id, [1, 2], adapter=adapter, max_new_tokens=4))
    simulation.step()
    running = [row.sequence.request.request_id for row in simulation.plans[0].rows]
    assert running == ["a", "base"]
    simulation.drain()
    order = [row.sequence.request.request_id for plan in simulation.plans for row in plan.rows if row.admits]
    assert order == ["a", "base", "b"]
