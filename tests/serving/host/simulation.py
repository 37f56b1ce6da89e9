"""A fake device and engine loop around the scheduler, without jax, which simulate what a step reads and writes.

Like the real device, the fake one keeps "keys and values" (here the token ids) in pages, and the last tokens in slots.
The next token of the fake model is a hash of everything that a row reads. A page or slot that is reused too early, or a
token that is lost or computed twice, therefore changes the output.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import accumulate, pairwise
from typing import NamedTuple

from ryzjax.serving.host import PagePool, Scheduler, Sequence, SequenceState, StepPlan
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.prompt_tiles import pool_tiles, score_tiles
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EngineRequest, FinishReason, Pooling
from ryzjax.serving.messages.sampling_params import SamplingParams

VOCAB = 19
TILE = 3
Score = tuple[int, int]
"""A prompt token, and the next token, which was scored."""


def make_request(
    request_id: str,
    prompt: Seq[int],
    *,
    max_new_tokens: int = 8,
    stops: Iterable[int] = (),
    min_tokens: int = 0,
    prompt_logprobs: int | None = None,
    pooling: Pooling | None = None,
    adapter: ServedAdapter | None = None,
) -> EngineRequest:
    """Returns an EngineRequest."""
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=None, min_tokens=min_tokens),
        stop_token_ids=frozenset(stops),
        max_new_tokens=max_new_tokens,
        seed=0,
        arrival_s=0.0,
        prompt_logprobs=prompt_logprobs,
        pooling=pooling,
        adapter=adapter,
    )


def make_adapter(name: str, version: int) -> ServedAdapter:
    """Returns an adapter without matrices."""
    return ServedAdapter(
        name=name, version=version, rank=1, root=name, base_model=None, created_s=0, values=(), scales=()
    )


def make_scheduler(
    *,
    num_pages: int = 65,
    page_size_tokens: int = 4,
    max_sequences: int = 4,
    max_batch_tokens: int = 16,
    max_context_tokens: int = 32,
    max_queue: int = 100,
    max_mixed_tokens: int | None = None,
    rope_switch_length: int | None = None,
    adapter_slots: int = 0,
) -> Scheduler:
    """Returns a small scheduler. By default only the batch budget is tight."""
    return Scheduler(
        pool=PagePool(num_pages=num_pages, page_size_tokens=page_size_tokens),
        max_sequences=max_sequences,
        max_batch_tokens=max_batch_tokens,
        max_context_tokens=max_context_tokens,
        max_queue=max_queue,
        max_mixed_tokens=max_mixed_tokens,
        rope_switch_length=rope_switch_length,
        adapters=AdapterSlots(adapter_slots) if adapter_slots else None,
    )


def next_token(context: Seq[object], output_index: int, banned: Iterable[int]) -> int:
    """Returns the fake model's next token, which depends on every token before it."""
    banned = set(banned)
    for salt in range(10 * VOCAB):
        token = zlib.crc32(repr((*context, output_index, salt)).encode()) % VOCAB
        if token not in banned:
            return token
    raise AssertionError("everything is banned")


def salt_of(adapter: ServedAdapter | None) -> tuple[str, ...]:
    """Returns what the fake model reads before the prompt: the adapter's name and version, so that adapters differ."""
    return () if adapter is None else (f"{adapter.name} {adapter.version}",)


def what_is_read(request: EngineRequest) -> tuple[list[Score], list[int] | None]:
    """Returns the prompt's scores and the sum of its pooled hidden states, as if the request ran alone.

    The fake hidden state of a token is the token itself. A sum is the list of its terms, in order.
    """
    prompt = list(request.prompt_token_ids)
    scores = [(prompt[at], prompt[at + 1]) for at in range(len(prompt) - 1)]
    pooled = {None: None, "mean": prompt, "last": prompt[-1:]}[request.pooling]
    return [] if request.prompt_logprobs is None else scores, pooled


def alone(request: EngineRequest, max_context_tokens: int) -> tuple[list[int], FinishReason]:
    """Returns what the request generates if it runs alone, and its finish reason."""
    if request.max_new_tokens == 0:
        return [], "length" if request.pooling is None else "stop"
    tokens = list(request.prompt_token_ids)
    output: list[int] = []
    while True:
        banned = request.stop_token_ids if len(output) < request.params.min_tokens else ()
        token = next_token([*salt_of(request.adapter), *tokens], len(output), banned)
        tokens.append(token)
        output.append(token)
        if token in request.stop_token_ids:
            return output, "stop"
        if len(output) >= request.max_new_tokens or len(tokens) >= max_context_tokens:
            return output, "length"


class StepOutcome(NamedTuple):
    """The results of a step."""

    sampled: list[int]
    scores: list[Score]
    totals: list[list[int]]


class FakeDevice:
    """Runs plans in order, at dispatch. Its pages start as garbage that would change an output that reads it."""

    def __init__(self, pool: PagePool, num_slots: int, rope_switch_length: int | None):
        self._page_size = pool.page_size_tokens
        self._switch = rope_switch_length
        self._cache = [[-999] * pool.page_size_tokens for _ in range(pool.num_pages)]
        self._is_long: list[list[bool | None]] = [[None] * pool.page_size_tokens for _ in range(pool.num_pages)]
        self._last_tokens = [-777] * num_slots
        self._sums = [[-555]] * num_slots
        self._adapters: dict[int, ServedAdapter] = {}

    def write_adapter(self, slot: int, adapter: ServedAdapter) -> None:
        """Writes an adapter into a slot. Steps that are dispatched later read it."""
        self._adapters[slot] = adapter

    def run(self, plan: StepPlan) -> StepOutcome:
        """Runs a plan. Returns its sampled tokens, its scores, and the sums of the sequences that end."""
        for row in plan.rows:  # all rows write before any reads, as in a layer of the real step
            ids = (self._last_tokens[row.slot],) if row.token_ids is None else row.token_ids
            assert len(ids) == row.query_len
            for position, token in enumerate(ids, start=row.context_len - row.query_len):
                page, offset = row.sequence.pages[position // self._page_size], position % self._page_size
                self._cache[page][offset] = token
                self._is_long[page][offset] = self._rotates_long(max(row.sequence.rope_length, position + 1))
        sampled = []
        for row in plan.rows:
            if row.samples:
                slot = row.sequence.adapter_slot
                context: list[object] = [*salt_of(None if slot is None else self._adapters[slot])]
                context += [
                    self._cache[row.sequence.pages[position // self._page_size]][position % self._page_size]
                    for position in range(row.context_len)
                ]
                rotations = {
                    self._is_long[row.sequence.pages[position // self._page_size]][position % self._page_size]
                    for position in range(row.context_len)
                }
                # LongRoPE: all keys must have the rotations that belong to the current length of the sequence.
                assert rotations == {self._rotates_long(row.context_len)}
                banned = row.sequence.request.stop_token_ids if row.ban_stops else ()
                token = next_token(context, row.output_index, banned)
                self._last_tokens[row.slot] = token
                sampled.append(token)
        return StepOutcome(sampled, *self._read_prompts(plan))

    def _rotates_long(self, length: int) -> bool:
        return self._switch is not None and length > self._switch

    def _read_prompts(self, plan: StepPlan) -> tuple[list[Score], list[list[int]]]:
        hidden = [token for row in plan.rows for token in row.token_ids or (-333,)]
        scores = [(hidden[index], token) for tile in score_tiles(plan, TILE) for index, token in tile.T.tolist()]
        totals = []
        for tile in pool_tiles(plan, TILE, max_sequences=len(self._sums)):
            for index, slot, restarts in tile.T.tolist():
                if slot < len(self._sums):
                    self._sums[slot] = [*([] if restarts else self._sums[slot]), hidden[index]]
                    totals.append(self._sums[slot])
        ends = accumulate(len(reading.pooled) for reading in plan.readings)
        return scores[: plan.num_scored], [
            totals[end - 1] for end, r in zip(ends, plan.readings, strict=True) if r.pooled and r.finishes
        ]


class Simulation:
    """The engine's loop, plain or overlapped. It checks every invariant of each plan."""

    def __init__(self, scheduler: Scheduler, *, overlap: bool):
        self.scheduler = scheduler
        self.overlap = overlap
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.scores: dict[str, list[Score]] = {}
        self.totals: dict[str, list[int]] = {}
        self.plans: list[StepPlan] = []
        self._device = FakeDevice(scheduler.pool, scheduler.max_sequences, scheduler.rope_switch_length)
        self._in_flight: deque[tuple[StepPlan, StepOutcome]] = deque()
        self._open: list[Sequence] = []
        self._last_admitted = -1
        self._last_admitted_with: dict[ServedAdapter | None, int] = {}

    def add(self, request: EngineRequest) -> None:
        """Adds a request."""
        self._open.append(self.scheduler.add(request))
        self.outputs[request.request_id] = []
        self.scores[request.request_id] = []
        self.scheduler.check_integrity()

    def abort(self, request_id: str) -> None:
        """Aborts a request in any state."""
        sequence = self.scheduler.abort(request_id)
        assert sequence is not None and sequence.finish_reason == "abort"
        assert not sequence.pages and sequence.slot is None and sequence.adapter_slot is None
        self.reasons[request_id] = "abort"
        self.scheduler.check_integrity()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._in_flight) or self.scheduler.has_work

    @property
    def open_ids(self) -> list[str]:
        """The ids of requests that have not ended."""
        return [request_id for request_id in self.outputs if request_id not in self.reasons]

    def step(self) -> None:
        """Runs one turn of the loop."""
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        for slot, adapter in () if self.scheduler.adapters is None else self.scheduler.adapters.take_loads():
            self._device.write_adapter(slot, adapter)
        if plan is not None:
            self._check(plan)
            self.plans.append(plan)
            self._in_flight.append((plan, self._device.run(plan)))
        assert plan is not None or self._in_flight or not self.scheduler.has_work, "a loop that never moves"
        if self._in_flight and (not self.overlap or plan is None or len(self._in_flight) > 1):
            self._commit(*self._in_flight.popleft())
        self.scheduler.check_integrity()

    def drain(self) -> None:
        """Steps until nothing is left. Every resource must be free then."""
        for _ in range(10_000):
            if not self.has_work:
                break
            self.step()
        assert not self.has_work, "requests starve"
        assert self.scheduler.pool.num_used == 0
        assert self.scheduler.adapters is None or self.scheduler.adapters.num_in_use == 0
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        self.scheduler.check_integrity()

    def _commit(self, plan: StepPlan, outcome: StepOutcome) -> None:
        scores = iter(outcome.scores)
        for reading in plan.readings:
            self.scores[reading.row.sequence.request.request_id] += [next(scores) for _ in reading.scored]
        assert next(scores, None) is None
        ending = [reading.row.sequence for reading in plan.readings if reading.pooled and reading.finishes]
        for sequence, total in zip(ending, outcome.totals, strict=True):
            self.totals[sequence.request.request_id] = total
        for sequence, token, reason in self.scheduler.commit(plan, outcome.sampled):
            request_id = sequence.request.request_id
            assert request_id not in self.reasons, "a token after the end"
            assert (token is None) == (sequence.request.max_new_tokens == 0)
            if token is not None:
                self.outputs[request_id].append(token)
            assert sequence.output_len == len(self.outputs[request_id])
            if reason is not None:
                self.reasons[request_id] = reason

    def _check(self, plan: StepPlan) -> None:
        scheduler, rows = self.scheduler, plan.rows
        assert 0 < plan.num_tokens <= scheduler.max_batch_tokens
        assert plan.num_tokens == sum(row.query_len for row in rows)
        assert plan.num_samples == sum(row.samples for row in rows)
        chunks = rows[plan.num_decode_rows :]
        assert all(reading.row in chunks and reading.row.sequence.reads_prompt for reading in plan.readings)
        assert all(not (r.finishes and r.row.samples) for r in plan.readings)
        assert len(rows) <= scheduler.max_sequences
        assert len({row.slot for row in rows}) == len({id(row.sequence) for row in rows}) == len(rows)
        start = 0
        for i, row in enumerate(rows):
            assert row.query_start == start
            start += row.query_len
            assert (row.query_len == 1 and row.samples) == (i < plan.num_decode_rows)
            assert row.slot == row.sequence.slot and row.context_len == row.sequence.num_computed
            assert len(row.sequence.pages) * scheduler.pool.page_size_tokens >= row.context_len
            assert row.sequence.num_in_flight <= (2 if self.overlap else 1)
            if row.admits:
                assert row.context_len == row.query_len and row.token_ids is not None
            assert (row.sequence.adapter_slot is None) == (row.sequence.request.adapter is None)
        if scheduler.adapters is None:
            self._check_first_come_first_served(plan)
        else:
            self._check_order_of_each_adapter(plan)

    def _check_order_of_each_adapter(self, plan: StepPlan) -> None:
        """Asserts that a sequence overtakes another only if that one waits for the slot of another adapter."""
        newcomers = [row.sequence for row in plan.rows if row.admits and not row.sequence.num_preemptions]
        for sequence in sorted(newcomers, key=lambda sequence: sequence.admission):
            adapter = sequence.request.adapter
            assert sequence.arrival > self._last_admitted_with.get(adapter, -1)
            self._last_admitted_with[adapter] = sequence.arrival

    def _check_first_come_first_served(self, plan: StepPlan) -> None:
        for part in (plan.rows[: plan.num_decode_rows], plan.rows[plan.num_decode_rows :]):
            assert all(a.sequence.arrival < b.sequence.arrival for a, b in pairwise(part))
        newcomers = [row.sequence.arrival for row in plan.rows if row.admits and not row.sequence.num_preemptions]
        if newcomers:
            assert min(newcomers) > self._last_admitted
            self._last_admitted = max(newcomers)
        # Every sequence that could take a step, and arrived before one that took a step, took a step too.
        self._open = [sequence for sequence in self._open if sequence.state is not SequenceState.FINISHED]
        served = {id(row.sequence) for row in plan.rows}
        last = max(row.sequence.arrival for row in plan.rows)
        for sequence in self._open:
            ends_in_flight = sequence.state is SequenceState.RUNNING and sequence.slot is None
            switch = self.scheduler.rope_switch_length
            outgrew = switch is not None and sequence.rope_length <= switch < sequence.num_tokens
            waits_for_its_token = outgrew and sequence.num_in_flight > 0
            assert sequence.arrival > last or id(sequence) in served or ends_in_flight or waits_for_its_token
