"""The prompt positions that a step scores and pools, and the tiles they are cut into, against hand-worked numbers."""

from __future__ import annotations

import pytest

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.host import Scheduler, StepPlan
from ryzjax.serving.host.prompt_tiles import pool_tiles, score_tiles
from tests.serving.host.simulation import make_request, make_scheduler


def run(scheduler: Scheduler) -> StepPlan:
    """Runs one plain step."""
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.commit(plan, [9] * plan.num_samples)
    return plan


def read(plan: StepPlan) -> list[tuple[str, range, range, bool]]:
    """Returns (request, scored, pooled, finishes) for each reading."""
    return [(r.row.sequence.request.request_id, r.scored, r.pooled, r.finishes) for r in plan.readings]


def test_scores_of_a_prompt_in_chunks() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request("plain", [1, 2]))
    scheduler.add(make_request("a", [10, 11, 12, 13, 14, 15, 16], max_new_tokens=2, prompt_logprobs=1))
    first = run(scheduler)
    assert read(first) == [("a", range(0, 3), range(0), False)]
    # These are tokens 2, 3 and 4 of the step. The token after the last one is known, although it is in the next chunk.
    (tile,) = score_tiles(first, 4)
    assert tile.tolist() == [[2, 3, 4, 0], [11, 12, 13, 0]]
    assert pool_tiles(first, 4, max_sequences=4) == []
    second = run(scheduler)
    assert read(second) == [("a", range(3, 6), range(0), False)]
    one, two = score_tiles(second, 2)
    # "plain" decodes and is token 0. No token follows a's last one, 16, so that position samples instead.
    assert (one.tolist(), two.tolist()) == ([[1, 2], [14, 15]], [[3, 0], [16, 0]])
    assert second.num_scored == 3 and second.num_samples == 2
    third = run(scheduler)
    assert third.readings == () and score_tiles(third, 2) == [] and third.num_decode_rows == 2


def test_a_prompt_that_is_all_that_is_asked_for_ends_without_a_token() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    scores = scheduler.add(make_request("a", [5, 6, 7, 8, 9], max_new_tokens=0, prompt_logprobs=0))
    first = run(scheduler)
    assert read(first) == [("a", range(0, 4), range(0), False)] and first.num_samples == 0
    plan = scheduler.schedule()
    # A chunk of one token that scores is not a decode row, because the decode program keeps no hidden states.
    assert plan is not None and (plan.num_decode_rows, plan.num_samples) == (0, 0)
    assert read(plan) == [("a", range(4, 4), range(0), True)]
    assert scheduler.commit(plan, []) == [(scores, None, "length")]
    assert scheduler.pool.num_used == 0 and not scheduler.has_work
    scheduler.check_integrity()


@pytest.mark.parametrize("aborts", [False, True])
def test_the_end_of_a_prompt_in_flight_frees_its_pages_at_once(aborts: bool) -> None:
    scheduler = make_scheduler()
    sequence = scheduler.add(make_request("a", [5, 6, 7], max_new_tokens=0, pooling="mean"))
    plan = scheduler.schedule()
    assert plan is not None and scheduler.pool.num_used == 1
    assert scheduler.schedule() is None and scheduler.pool.num_used == 0
    scheduler.check_integrity()
    if aborts:
        scheduler.abort("a")
    assert scheduler.commit(plan, []) == ([] if aborts else [(sequence, None, "stop")])
    assert sequence.finish_reason == ("abort" if aborts else "stop") and not scheduler.has_work


def test_sums_restart_with_a_sequence_and_padding_has_no_slot() -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    mean = scheduler.add(make_request("mean", [5, 6, 7, 8], max_new_tokens=0, pooling="mean"))
    last = scheduler.add(make_request("last", [1, 2, 3], max_new_tokens=0, pooling="last"))
    plan = run(scheduler)
    # The chunk of "last" ends before its last token.
    assert read(plan) == [("mean", range(0), range(0, 4), True)]
    (tile,) = pool_tiles(plan, 5, max_sequences=4)
    slot = plan.rows[0].slot
    assert tile.tolist() == [[0, 1, 2, 3, 0], [slot] * 4 + [4], [1, 0, 0, 0, 0]]
    plan = run(scheduler)
    assert read(plan) == [("last", range(0), range(2, 3), True)]
    assert pool_tiles(plan, 1, max_sequences=4)[0].tolist() == [[0], [plan.rows[0].slot], [1]]
    assert mean.finish_reason == last.finish_reason == "stop"


def test_a_mean_goes_on_in_the_next_chunk() -> None:
    scheduler = make_scheduler(max_batch_tokens=3)
    scheduler.add(make_request("mean", [5, 6, 7, 8], max_new_tokens=0, pooling="mean"))
    first, second = run(scheduler), run(scheduler)
    assert pool_tiles(first, 3, max_sequences=4)[0][2].tolist() == [1, 0, 0]
    assert pool_tiles(second, 1, max_sequences=4)[0][2].tolist() == [0]


def test_what_is_refused() -> None:
    scheduler = make_scheduler(max_context_tokens=8)
    with pytest.raises(RequestError, match="max_new_tokens=0 is out of range; expected at least 1"):
        scheduler.add(make_request("a", [5], max_new_tokens=0))
    with pytest.raises(RequestError, match="max_new_tokens=-1 is out of range; expected at least 0"):
        scheduler.add(make_request("a", [5], max_new_tokens=-1, prompt_logprobs=1))
    with pytest.raises(RequestError, match="max_new_tokens=3 with pooling='last'; expected 0"):
        scheduler.add(make_request("a", [5], max_new_tokens=3, pooling="last"))
    with pytest.raises(ContextLengthError, match=r"length is 8 tokens\. However, the prompt has 9 tokens; shorten"):
        scheduler.add(make_request("a", range(9), max_new_tokens=0, pooling="last"))
    with pytest.raises(
        ContextLengthError, match=r"length is 8 tokens\. However, the prompt has 8 tokens and at least 1 must"
    ):
        scheduler.add(make_request("a", range(8), max_new_tokens=1, prompt_logprobs=1))
    scheduler.add(make_request("a", range(8), max_new_tokens=0, prompt_logprobs=1))
    run(scheduler)
    assert not scheduler.has_work
