"""Random traffic over pools that are too small: a request that is not aborted generates what it would alone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ryzjax.serving.host import Scheduler
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EngineRequest
from tests.serving.host.simulation import (
    VOCAB,
    Simulation,
    alone,
    make_adapter,
    make_request,
    make_scheduler,
    what_is_read,
)

CONTEXT = 24
ADAPTERS = [make_adapter("a", 1), make_adapter("b", 2), make_adapter("b", 3), make_adapter("c", 4)]


@dataclass(frozen=True, kw_only=True)
class Load:
    """A request, and the step in which it arrives."""

    request: EngineRequest
    step: int


@st.composite
def schedulers(draw: st.DrawFn) -> Scheduler:
    page_size = draw(st.integers(1, 5))
    needed = -(-CONTEXT // page_size)
    return make_scheduler(
        num_pages=1 + needed + draw(st.integers(0, needed)),
        page_size_tokens=page_size,
        max_sequences=draw(st.integers(1, 6)),
        max_batch_tokens=draw(st.integers(1, 20)),
        max_mixed_tokens=draw(st.none() | st.integers(1, 20)),
        max_context_tokens=CONTEXT,
        rope_switch_length=draw(st.none() | st.integers(1, CONTEXT)),
        adapter_slots=draw(st.integers(0, 3)),
    )


@st.composite
def requests(draw: st.DrawFn, request_id: str, scheduler: Scheduler) -> EngineRequest:
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 1))
    adapter = None if scheduler.adapters is None else draw(st.sampled_from([None, *ADAPTERS]))
    kind = draw(st.sampled_from(["generate", "generate", "generate and score", "score", "last", "mean"]))
    if kind == "last" or kind == "mean":
        return make_request(request_id, prompt, max_new_tokens=0, pooling=kind, adapter=adapter)
    if kind == "score":
        return make_request(request_id, prompt, max_new_tokens=0, prompt_logprobs=1, adapter=adapter)
    return make_request(
        request_id,
        prompt,
        max_new_tokens=draw(st.integers(1, CONTEXT)),
        stops=draw(st.sets(st.integers(0, VOCAB - 1), max_size=2)),
        min_tokens=draw(st.integers(0, 4)),
        prompt_logprobs=None if kind == "generate" else 1,
        adapter=adapter,
    )


def assert_read(simulation: Simulation, request: EngineRequest) -> None:
    """Asserts that every prompt token was scored once and in order, and that every sum has every token once."""
    scores, total = what_is_read(request)
    assert simulation.scores[request.request_id] == scores
    assert simulation.totals.get(request.request_id) == total


class TrafficMachine(RuleBasedStateMachine):
    """Adds, aborts and serves requests in any order. `Simulation` checks the rest."""

    @initialize(scheduler=schedulers(), overlap=st.booleans())
    def start(self, scheduler: Scheduler, overlap: bool) -> None:
        self.simulation = Simulation(scheduler, overlap=overlap)
        self.requests: dict[str, EngineRequest] = {}

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        request = data.draw(requests(f"r{len(self.requests)}", self.simulation.scheduler))
        self.requests[request.request_id] = request
        self.simulation.add(request)

    @precondition(lambda self: self.simulation.open_ids)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.simulation.abort(data.draw(st.sampled_from(self.simulation.open_ids)))

    @precondition(lambda self: self.simulation.scheduler.adapters is not None)
    @rule(adapter=st.sampled_from(ADAPTERS), loads=st.booleans())
    def load_or_unload(self, adapter: ServedAdapter, loads: bool) -> None:
        slots = self.simulation.scheduler.adapters
        assert slots is not None
        if loads:
            slots.prefetch(adapter)
        else:
            slots.retire(adapter)

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.simulation.step()

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        self.simulation.drain()
        for request_id, request in self.requests.items():
            output, reason = alone(request, CONTEXT)
            if self.simulation.reasons[request_id] == "abort":
                assert self.simulation.outputs[request_id] == output[: len(self.simulation.outputs[request_id])]
            else:
                assert (self.simulation.outputs[request_id], self.simulation.reasons[request_id]) == (output, reason)
                assert_read(self.simulation, request)


TestTraffic = TrafficMachine.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), scheduler=schedulers(), overlap=st.booleans(), count=st.integers(1, 10))
def test_a_burst_generates_what_each_request_does_alone(
    data: st.DataObject, scheduler: Scheduler, overlap: bool, count: int
) -> None:
    simulation = Simulation(scheduler, overlap=overlap)
    loads = [
        Load(request=data.draw(requests(f"r{i}", scheduler)), step=data.draw(st.integers(0, 10), label="step"))
        for i in range(count)
    ]
    for step in range(11):
        for load in loads:
            if load.step == step:
                simulation.add(load.request)
        simulation.step()
    simulation.drain()
    for load in loads:
        request_id = load.request.request_id
        assert (simulation.outputs[request_id], simulation.reasons[request_id]) == alone(load.request, CONTEXT)
        assert_read(simulation, load.request)


def test_a_tight_pool_preempts_often_and_nobody_notices() -> None:
    """The random tests rely on preemptions. Here they must happen, with tokens in flight."""
    for overlap in (False, True):
        scheduler = make_scheduler(num_pages=1 + 8, page_size_tokens=2, max_sequences=5, max_context_tokens=16)
        simulation = Simulation(scheduler, overlap=overlap)
        wanted = [make_request(f"r{i}", [i, i + 1], max_new_tokens=14) for i in range(8)]
        for request in wanted:
            simulation.add(request)
        simulation.drain()
        assert scheduler.num_preemptions >= 4
        assert any(row.admits and row.sequence.num_preemptions for plan in simulation.plans for row in plan.rows)
        for request in wanted:
            assert simulation.outputs[request.request_id] == alone(request, 16)[0]


def test_prompts_that_are_read_are_preempted_halfway() -> None:
    """The same for scores and sums: some prompt must lose its pages between two of its chunks."""
    halfway = 0
    for overlap in (False, True):
        # A prompt of 12 tokens runs in chunks, beside short sequences that outgrow the pool.
        scheduler = make_scheduler(
            num_pages=1 + 10, page_size_tokens=2, max_sequences=5, max_batch_tokens=5, max_context_tokens=16
        )
        simulation = Simulation(scheduler, overlap=overlap)
        wanted = [make_request(f"r{i}", [i, i + 1], max_new_tokens=14) for i in range(2)]
        wanted += [
            make_request("score", range(12), max_new_tokens=2, prompt_logprobs=1),
            make_request("mean", range(3, 13), max_new_tokens=0, pooling="mean"),
            make_request("last", range(5, 11), max_new_tokens=0, pooling="last"),
        ]
        for request in wanted:
            simulation.add(request)
        simulation.drain()
        for request in wanted:
            assert simulation.outputs[request.request_id] == alone(request, 16)[0]
            assert_read(simulation, request)
        computed: dict[str, int] = {}
        for row in (row for plan in simulation.plans for row in plan.rows if row.sequence.reads_prompt):
            name = row.sequence.request.request_id
            halfway += row.admits and 0 < computed.get(name, 0) < row.sequence.prompt_len
            computed[name] = row.context_len
    assert halfway
