"""make_plan describes a step and changes nothing; the scheduler moves the counters."""

from __future__ import annotations

from ryzjax.serving.host.sequence import Sequence
from ryzjax.serving.host.step_plan import Chunk, make_plan
from tests.serving.host.simulation import make_request, make_scheduler


def counters(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.num_computed, sequence.num_scored, sequence.num_in_flight


def test_a_plan_changes_no_sequence():
    sequence = Sequence(make_request("a", [1, 2, 3, 4], prompt_logprobs=1), arrival=0, max_context_tokens=16)
    sequence.slot = 0
    plans = [make_plan([Chunk(sequence, 4, admits=True)]) for _ in range(2)]
    assert plans[0] == plans[1] and plans[0].num_scored == 3 and plans[0].num_samples == 1
    assert counters(sequence) == (0, 0, 0)


def test_the_scheduler_moves_the_counters():
    scheduler = make_scheduler()
    sequence = scheduler.add(make_request("a", [1, 2, 3, 4], prompt_logprobs=1))
    assert scheduler.schedule() is not None
    assert counters(sequence) == (4, 3, 1)
