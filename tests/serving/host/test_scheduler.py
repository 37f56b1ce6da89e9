"""Each rule of the scheduler by itself, with numbers worked out by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ryzjax.serving.host as host
from ryzjax.errors import CapacityError, ConfigError, ContextLengthError, QueueFullError, RequestError
from ryzjax.serving.host import PagePool, Scheduler, SequenceState, StepPlan
from tests.serving.host.simulation import Simulation, alone, make_request, make_scheduler


def shape(plan: StepPlan | None) -> list[tuple[str, int, int]]:
    """Returns (request, query_len, context_len) for each row."""
    assert plan is not None
    return [(row.sequence.request.request_id, row.query_len, row.context_len) for row in plan.rows]


def run(scheduler: Scheduler, token: int = 9) -> StepPlan:
    """Runs one plain step in which every row samples `token`."""
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.commit(plan, [token] * plan.num_samples)
    return plan


def test_a_prompt_is_cut_into_chunks_and_only_its_end_samples() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    scheduler.add(make_request("a", range(10)))
    rows = [run(scheduler).rows[0] for _ in range(4)]
    assert [row.token_ids for row in rows] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (9,)]
    assert [row.context_len for row in rows] == [4, 8, 10, 11]
    assert [row.samples for row in rows] == [False, False, True, True]
    assert [row.admits for row in rows] == [True, False, False, False]
    assert [row.output_index for row in rows] == [0, 0, 0, 1]


def test_decode_rows_come_first_and_chunks_get_the_rest_of_the_budget() -> None:
    scheduler = make_scheduler(max_batch_tokens=8)
    scheduler.add(make_request("a", range(3)))
    scheduler.add(make_request("b", range(2)))
    assert shape(run(scheduler)) == [("a", 3, 3), ("b", 2, 2)]
    scheduler.add(make_request("c", range(7)))
    scheduler.add(make_request("d", range(9)))
    plan = run(scheduler)
    assert shape(plan) == [("a", 1, 4), ("b", 1, 3), ("c", 6, 6)]
    assert (plan.num_decode_rows, plan.num_tokens, plan.num_samples, plan.num_prompt_tokens) == (2, 8, 2, 6)
    plan = run(scheduler)
    # c's last prompt token samples, so it counts as a decode row. d gets the rest of the budget.
    assert shape(plan) == [("a", 1, 5), ("b", 1, 4), ("c", 1, 7), ("d", 5, 5)]
    assert (plan.num_decode_rows, plan.num_prompt_tokens) == (3, 6)


def test_a_prompt_of_one_token_is_a_decode_row_but_a_chunk_of_one_is_not() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request("a", range(3)))
    scheduler.add(make_request("b", [5]))
    scheduler.add(make_request("c", range(4)))
    plan = run(scheduler)
    assert shape(plan) == [("b", 1, 1), ("a", 3, 3), ("c", 1, 1)]
    assert [row.query_start for row in plan.rows] == [0, 1, 4]
    assert [row.samples for row in plan.rows] == [True, True, False]
    assert plan.num_decode_rows == 1


def test_the_first_in_line_is_never_overtaken() -> None:
    scheduler = make_scheduler(num_pages=1 + 8, max_batch_tokens=64)
    scheduler.add(make_request("a", range(16)))
    scheduler.add(make_request("long", range(17)))
    scheduler.add(make_request("short", [1]))
    assert shape(run(scheduler)) == [("a", 16, 16)]
    assert scheduler.num_waiting == 2


def test_admission_leaves_a_page_for_each_that_runs() -> None:
    scheduler = make_scheduler(num_pages=1 + 8, max_batch_tokens=64)
    scheduler.add(make_request("a", range(12)))
    scheduler.add(make_request("b", range(20)))
    assert shape(run(scheduler)) == [("a", 12, 12)]
    assert scheduler.pool.num_free == 5, "enough for b, but a's next page would take one from b again"
    assert shape(run(scheduler)) == [("a", 1, 13)]
    assert scheduler.pool.num_free == 4
    scheduler.abort("b")
    scheduler.add(make_request("c", range(12)))
    assert shape(run(scheduler)) == [("a", 1, 14), ("c", 12, 12)]


def test_slots_limit_who_runs_and_are_stable() -> None:
    scheduler = make_scheduler(max_sequences=2)
    for name in "abc":
        scheduler.add(make_request(name, [1, 2], max_new_tokens=3 if name == "a" else 8))
    slots = [{row.sequence.request.request_id: row.slot for row in run(scheduler).rows} for _ in range(4)]
    assert slots == [{"a": 0, "b": 1}] * 3 + [{"b": 1, "c": 0}]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 0)


def test_the_latest_arrival_is_preempted_and_comes_back_first_with_its_tokens() -> None:
    scheduler = make_scheduler(num_pages=1 + 4, page_size_tokens=2, max_batch_tokens=64, max_context_tokens=8)
    a = scheduler.add(make_request("a", [1, 2]))
    b = scheduler.add(make_request("b", [3, 4]))
    scheduler.add(make_request("c", [5, 6, 7]))
    assert [shape(run(scheduler)) for _ in range(3)] == [
        [("a", 2, 2), ("b", 2, 2)],
        [("a", 1, 3), ("b", 1, 3)],
        [("a", 1, 4), ("b", 1, 4)],
    ]
    assert shape(run(scheduler)) == [("a", 1, 5)]
    assert (b.state, b.pages, b.slot, b.num_computed) == (SequenceState.WAITING, [], None, 0)
    assert b.token_ids == [3, 4, 9, 9, 9]
    assert (b.num_preemptions, a.num_preemptions, scheduler.num_preemptions) == (1, 0, 1)
    scheduler.abort("a")
    plan = run(scheduler)
    assert shape(plan) == [("b", 5, 5)], "ahead of c, which came later"
    assert plan.rows[0].admits
    assert (plan.rows[0].output_index, plan.num_prompt_tokens) == (3, 2)


def test_the_oldest_is_preempted_for_nobody() -> None:
    scheduler = make_scheduler(num_pages=1 + 4, page_size_tokens=2, max_batch_tokens=64, max_context_tokens=8)
    first = scheduler.add(make_request("a", [1, 2]))
    scheduler.add(make_request("b", [3, 4, 5]))
    while first.state is not SequenceState.FINISHED:
        assert shape(run(scheduler))[0][0] == "a"
    assert first.num_preemptions == 0
    assert (first.output_len, first.finish_reason) == (6, "length")


def test_overlap_schedules_tokens_that_only_the_device_knows() -> None:
    scheduler = make_scheduler()
    a = scheduler.add(make_request("a", [1, 2]))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert first is not None and second is not None
    assert first.rows[0].token_ids == (1, 2)
    row = second.rows[0]
    assert (row.token_ids, row.query_len, row.context_len, row.output_index) == (None, 1, 3, 1)
    assert a.num_in_flight == 2
    assert scheduler.commit(first, [7]) == [(a, 7, None)]
    assert (a.num_in_flight, a.token_ids) == (1, [1, 2, 7])
    assert scheduler.commit(second, [8]) == [(a, 8, None)]
    third = scheduler.schedule()
    assert third is not None and third.rows[0].token_ids == (8,)


def test_an_end_known_by_count_is_not_scheduled_and_frees_at_once() -> None:
    scheduler = make_scheduler(max_sequences=1)
    a = scheduler.add(make_request("a", [1, 2], max_new_tokens=1))
    scheduler.add(make_request("b", [3]))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert first is not None
    assert shape(second) == [("b", 1, 1)], "the slot is free before a's token is read: steps run in order"
    assert (a.state, a.pages, a.slot) == (SequenceState.RUNNING, [], None)
    assert scheduler.num_running == 2
    scheduler.check_integrity()
    assert scheduler.commit(first, [7]) == [(a, 7, "length")]
    assert scheduler.num_running == 1


def test_a_stop_token_is_found_late_and_the_row_in_flight_is_ignored() -> None:
    scheduler = make_scheduler()
    a = scheduler.add(make_request("a", [1, 2], stops=[7]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    assert scheduler.commit(first, [7]) == [(a, 7, "stop")]
    assert a.token_ids == [1, 2, 7], "the stop token is part of the output"
    assert scheduler.pool.num_used == 0
    assert scheduler.commit(second, [8]) == []
    assert a.token_ids == [1, 2, 7]
    assert not scheduler.has_work and scheduler.schedule() is None


def test_a_preempted_sequence_waits_for_its_token_in_flight() -> None:
    scheduler = make_scheduler(num_pages=1 + 4, page_size_tokens=2, max_batch_tokens=64, max_context_tokens=8)
    scheduler.add(make_request("a", [1, 2, 3, 4]))
    b = scheduler.add(make_request("b", [5]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert shape(first) == [("b", 1, 1), ("a", 4, 4)]
    assert shape(second) == [("a", 1, 5), ("b", 1, 2)]
    assert first is not None and second is not None
    scheduler.commit(first, [6, 6])
    third = scheduler.schedule()
    assert shape(third) == [("a", 1, 6)], "b needs a second page and there is none"
    assert (b.state, b.num_in_flight) == (SequenceState.WAITING, 1)
    scheduler.abort("a")
    assert scheduler.schedule() is None, "b's place is free, but its last token is not known yet"
    assert scheduler.has_work
    assert scheduler.commit(second, [6, 8]) == [(b, 8, None)]
    assert third is not None
    assert scheduler.commit(third, [6]) == []
    plan = scheduler.schedule()
    assert plan is not None and plan.rows[0].token_ids == (5, 6, 8)


def test_a_sequence_can_finish_while_preempted() -> None:
    scheduler = make_scheduler(num_pages=1 + 4, page_size_tokens=2, max_batch_tokens=64, max_context_tokens=8)
    scheduler.add(make_request("a", [1, 2, 3, 4]))
    b = scheduler.add(make_request("b", [5], stops=[8]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    scheduler.commit(first, [6, 6])
    scheduler.schedule()
    assert b.state is SequenceState.WAITING
    assert scheduler.commit(second, [6, 8])[1] == (b, 8, "stop")
    assert scheduler.num_waiting == 0
    scheduler.check_integrity()


def test_the_context_ends_a_sequence() -> None:
    scheduler = make_scheduler(max_context_tokens=6)
    a = scheduler.add(make_request("a", [1, 2, 3], max_new_tokens=100))
    while scheduler.has_work:
        run(scheduler)
    assert (len(a.token_ids), a.finish_reason) == (6, "length")


def test_stop_wins_over_length() -> None:
    scheduler = make_scheduler()
    a = scheduler.add(make_request("a", [1], max_new_tokens=1, stops=[9]))
    run(scheduler)
    assert a.finish_reason == "stop"


def test_min_tokens_bans_stops_by_output_index() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2], min_tokens=2))
    plans = [scheduler.schedule() for _ in range(4)]
    rows = [plan.rows[0] for plan in plans if plan is not None]
    assert [(row.output_index, row.ban_stops) for row in rows] == [(0, True), (1, True), (2, False), (3, False)]


@pytest.mark.parametrize("when", ["waiting", "prefill", "decode", "in flight", "ending"])
def test_abort_frees_everything_at_once(when: str) -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    a = scheduler.add(make_request("a", range(6), max_new_tokens=1 if when == "ending" else 8))
    steps = {"waiting": 0, "prefill": 1, "decode": 3, "in flight": 2, "ending": 2}[when]
    plans = [scheduler.schedule() for _ in range(steps)]
    if when == "decode":
        for plan in plans:
            assert plan is not None
            scheduler.commit(plan, [9] * plan.num_samples)
        plans = []
    if when == "ending":
        assert scheduler.schedule() is None
    assert scheduler.abort("a") is a
    assert (a.state, a.finish_reason) == (SequenceState.FINISHED, "abort")
    assert scheduler.pool.num_used == 0 and not scheduler.has_work
    scheduler.check_integrity()
    for plan in plans:
        assert plan is not None
        assert scheduler.commit(plan, [9] * plan.num_samples) == []
    assert scheduler.abort("a") is None
    scheduler.add(make_request("a", [1]))  # the id can be used again


def test_prompts_beside_decoding_sequences_are_computed_in_small_chunks() -> None:
    scheduler = make_scheduler(max_mixed_tokens=6, max_sequences=8)
    scheduler.add(make_request("a", range(14), max_new_tokens=12))
    plan = scheduler.schedule()
    assert plan is not None and [row.query_len for row in plan.rows] == [14], "alone, a prompt takes the whole budget"
    scheduler.commit(plan, [9])
    scheduler.add(make_request("b", range(13), max_new_tokens=4))
    scheduler.add(make_request("c", range(3), max_new_tokens=4))
    lengths = []
    for _ in range(4):
        plan = scheduler.schedule()
        assert plan is not None
        lengths.append([(row.sequence.request.request_id, row.query_len) for row in plan.rows])
        scheduler.commit(plan, [9] * plan.num_samples)
    assert lengths == [
        [("a", 1), ("b", 5)],
        [("a", 1), ("b", 5)],
        [("a", 1), ("b", 3), ("c", 2)],
        [("a", 1), ("b", 1), ("c", 1)],
    ]
    scheduler.check_integrity()


def test_prompts_go_on_beside_many_decoding_sequences() -> None:
    scheduler = make_scheduler(max_mixed_tokens=4, max_sequences=8)
    for name in "abcdef":
        scheduler.add(make_request(name, [1], max_new_tokens=12))
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.commit(plan, [9] * plan.num_samples)
    scheduler.add(make_request("g", range(20), max_new_tokens=2))
    plan = scheduler.schedule()
    assert plan is not None and [row.query_len for row in plan.rows] == [1] * 6 + [6]


def test_a_full_queue_refuses_and_says_when_to_retry() -> None:
    now = 100.0
    pool = PagePool(num_pages=65, page_size_tokens=4)
    scheduler = Scheduler(
        pool=pool, max_sequences=2, max_batch_tokens=16, max_context_tokens=32, max_queue=2, clock=lambda: now
    )
    for name in "abcd":  # two fill the slots, and two the queue
        scheduler.add(make_request(name, [1], max_new_tokens={"a": 1, "b": 2}.get(name, 8)))
    with pytest.raises(QueueFullError, match="4 requests wait and max_queue=2") as refusal:
        scheduler.add(make_request("e", [1]))
    assert refusal.value.retry_after_s == 1
    run(scheduler)
    now += 4.5
    run(scheduler)
    scheduler.add(make_request("e", [1]))
    scheduler.add(make_request("f", [1]))
    with pytest.raises(QueueFullError) as refusal:
        scheduler.add(make_request("g", [1]))
    assert refusal.value.retry_after_s == 5, "one finished every 4.5 s"


def test_bad_requests_are_refused_and_leave_no_trace() -> None:
    scheduler = make_scheduler(max_context_tokens=8)
    scheduler.add(make_request("a", [1]))
    with pytest.raises(RequestError, match="'a' is in use"):
        scheduler.add(make_request("a", [1]))
    with pytest.raises(RequestError, match="no token"):
        scheduler.add(make_request("b", []))
    with pytest.raises(RequestError, match="max_new_tokens=0"):
        scheduler.add(make_request("b", [1], max_new_tokens=0))
    with pytest.raises(
        ContextLengthError, match=r"length is 8 tokens\. However, the prompt has 8 tokens and at least 1 must"
    ):
        scheduler.add(make_request("b", range(8)))
    scheduler.add(make_request("b", range(7)))
    assert scheduler.num_waiting == 2


def test_bad_limits_are_refused() -> None:
    with pytest.raises(CapacityError, match="max_context_tokens=32 does not fit the KV pool of 7 pages"):
        make_scheduler(num_pages=8)
    make_scheduler(num_pages=9)
    for name in ("max_sequences", "max_batch_tokens", "max_context_tokens", "max_queue"):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            make_scheduler(**{name: 0})


def test_steps_are_committed_in_order_and_whole() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1]))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    with pytest.raises(ValueError, match="out of order"):
        scheduler.commit(second, [1])
    scheduler.commit(first, [1])
    with pytest.raises(ValueError, match="out of order"):
        scheduler.commit(first, [1])
    with pytest.raises(ValueError, match="zip"):
        scheduler.commit(second, [])


def test_integrity_finds_lost_slots_and_pages() -> None:
    scheduler = make_scheduler()
    a = scheduler.add(make_request("a", [1]))
    run(scheduler)
    scheduler.check_integrity()
    a.slot = None
    with pytest.raises(AssertionError, match="slots"):
        scheduler.check_integrity()
    a.slot = 0
    a.pages.pop()
    with pytest.raises(AssertionError, match="lost"):
        scheduler.check_integrity()


def test_first_scheduled_is_kept_over_a_preemption() -> None:
    ticks = iter(range(100))
    scheduler = Scheduler(
        pool=PagePool(num_pages=5, page_size_tokens=2),
        max_sequences=2,
        max_batch_tokens=16,
        max_context_tokens=8,
        max_queue=8,
        clock=lambda: float(next(ticks)),
    )
    for name in "ab":
        scheduler.add(make_request(name, [1, 2]))
    sequences = [row.sequence for row in run(scheduler).rows]
    while scheduler.has_work:
        run(scheduler)
    assert [sequence.first_scheduled_s for sequence in sequences] == [0.0, 1.0]
    assert sequences[1].num_preemptions == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_a_budget_smaller_than_the_batch_starves_nobody(overlap: bool) -> None:
    scheduler = make_scheduler(max_batch_tokens=2, max_sequences=4)
    simulation = Simulation(scheduler, overlap=overlap)
    wanted = [make_request(f"r{i}", range(i, i + 5), max_new_tokens=6) for i in range(5)]
    for request in wanted:
        simulation.add(request)
    simulation.drain()
    assert [simulation.outputs[request.request_id] for request in wanted] == [alone(r, 32)[0] for r in wanted]


def test_overlap_takes_no_more_steps_than_plain() -> None:
    """The slot of a sequence that ends by count is reused immediately, before its last token is read."""
    steps = {}
    for overlap in (False, True):
        simulation = Simulation(make_scheduler(max_sequences=1), overlap=overlap)
        for name in "abc":
            simulation.add(make_request(name, [1, 2], max_new_tokens=4))
        simulation.drain()
        steps[overlap] = len(simulation.plans)
    assert steps == {False: 12, True: 12}


def test_the_host_side_imports_no_jax() -> None:
    for path in Path(host.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"jax", "jaxlib", "flax"}, path


def test_a_sequence_that_outgrows_its_rotations_is_computed_again_in_place() -> None:
    scheduler = make_scheduler(max_batch_tokens=4, rope_switch_length=6)
    scheduler.add(make_request("a", range(5)))
    scheduler.add(make_request("long", range(100, 107)))
    lengths = []
    plans: list[list[tuple[str, int, int]]] = []
    for _ in range(9):
        plan = run(scheduler)
        plans.append(shape(plan))
        lengths.append({row.sequence.request.request_id: row.sequence.rope_length for row in plan.rows})
        scheduler.check_integrity()
    # Five prompt tokens and one generated token are within the length. The seventh token makes it start over.
    assert [row for rows in plans for row in rows if row[0] == "a"] == [
        ("a", 4, 4), ("a", 1, 5), ("a", 1, 6), ("a", 4, 4), ("a", 3, 7), ("a", 1, 8), ("a", 1, 9), ("a", 1, 10),
        ("a", 1, 11),
    ]  # fmt: skip
    assert [step["a"] for step in lengths] == [5, 5, 5, 7, 7, 7, 7, 7, 7]
    # A prompt that is longer from the start never starts over.
    assert {step["long"] for step in lengths if "long" in step} == {7}
    assert scheduler.num_preemptions == 0


def test_it_waits_for_its_token_in_flight_before_it_begins_again() -> None:
    scheduler = make_scheduler(max_batch_tokens=8, rope_switch_length=4)
    scheduler.add(make_request("a", range(4)))
    first = scheduler.schedule()
    assert shape(first) == [("a", 4, 4)]
    # Its fifth token is still on the device. It cannot be fed, because the keys have the old rotations, and the
    # sequence cannot be computed again, because the token is unknown.
    assert scheduler.schedule() is None
    scheduler.commit(first, [9])
    again = scheduler.schedule()
    assert shape(again) == [("a", 5, 5)] and again.rows[0].token_ids == (0, 1, 2, 3, 9)
    scheduler.check_integrity()


def test_one_that_is_preempted_as_it_outgrows_its_rotations_begins_with_the_new_ones() -> None:
    # b's fourth token is in flight when a's seventh takes b's pages. The simulation checks the rotations.
    scheduler = make_scheduler(num_pages=1 + 5, page_size_tokens=2, max_context_tokens=10, rope_switch_length=3)
    simulation = Simulation(scheduler, overlap=True)
    requests = [make_request("a", range(4), max_new_tokens=6), make_request("b", [5], max_new_tokens=6)]
    for request in requests:
        simulation.add(request)
    while simulation.has_work:
        simulation.step()
    assert scheduler.num_preemptions > 0
    for request in requests:
        assert simulation.outputs[request.request_id] == alone(request, 10)[0]
