"""Packing: the device reads what was planned."""

from __future__ import annotations

import numpy as np

from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.host.packing import SAMPLE_TABLE, StepPacker
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.request import EngineRequest
from ryzjax.serving.messages.sampling_params import SamplingParams
from tests.serving.host.simulation import make_adapter, make_request, make_scheduler

SAMPLE_FIELDS = [field.name for field in SAMPLE_TABLE]


def request(name: str, prompt: list[int], **params: object) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**params),
        stop_token_ids=frozenset(),
        max_new_tokens=8,
        seed=(7 << 32) | 0xFFFFFFFF,
        arrival_s=0.0,
    )


def unpack(packer: StepPacker, buffer: np.ndarray, tokens: int) -> dict[str, np.ndarray]:
    layout = packer.layout(tokens)
    assert buffer.shape == (layout.size,) and buffer.dtype == np.int32
    return {name: buffer[where].reshape(shape) for name, (where, shape) in layout.parts.items()}


def test_a_prefill_then_a_mixed_step():
    scheduler = Scheduler(
        pool=PagePool(num_pages=16, page_size_tokens=4),
        max_sequences=3,
        max_batch_tokens=6,
        max_context_tokens=32,
        max_queue=8,
    )
    packer = StepPacker(max_sequences=3, max_pages=8)
    scheduler.add(request("a", [11, 12, 13, 14, 15], temperature=0.5, top_k=9, logprobs=3))
    first = scheduler.schedule()
    assert first is not None
    parts = unpack(packer, packer.pack(first, 8), 8)
    assert parts["counts"].tolist() == [0, 1]
    assert parts["token_ids"].tolist() == [11, 12, 13, 14, 15, 0, 0, 0]
    assert parts["token_rows"].tolist() == [0] * 5 + [-1] * 3
    assert parts["rows"].tolist() == [[0, 5, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0]]
    slot, pages = first.rows[0].slot, first.rows[0].sequence.pages
    assert parts["page_table"][0, : len(pages)].tolist() == list(pages)
    assert not parts["page_table"][1:].any()
    sample = dict(zip(SAMPLE_FIELDS, parts["samples"][0], strict=True))
    assert (sample["token_index"], sample["slot"], sample["output_index"]) == (4, slot, 0)
    assert (sample["top_k"], sample["wants_top"], sample["use_history"]) == (9, 1, 0)
    assert np.int32(sample["temperature"]).view(np.float32) == np.float32(0.5)
    assert (int(sample["seed_low"]), int(sample["seed_high"])) == (-1, 7)
    assert parts["samples"][1:, SAMPLE_FIELDS.index("slot")].tolist() == [3, 3]  # past the end, so the write is dropped

    # The next step is planned before the token is known. The device reads it from the slot.
    scheduler.add(request("b", [21, 22], frequency_penalty=1.0, min_tokens=2))
    second = scheduler.schedule()
    assert second is not None
    parts = unpack(packer, packer.pack(second, 4), 4)
    other = second.rows[1].slot
    assert parts["counts"].tolist() == [1, 2]
    assert parts["token_ids"].tolist() == [-1 - slot, 21, 22, 0]
    assert parts["token_rows"].tolist() == [0, 1, 1, -1]
    assert parts["rows"][:2].tolist() == [[0, 1, 6, 5], [1, 2, 2, 2]]
    fields = {name: parts["samples"][:2, i].tolist() for i, name in enumerate(SAMPLE_FIELDS)}
    assert fields["slot"] == [slot, other] and fields["output_index"] == [1, 0]
    assert fields["use_history"] == [0, 1] and fields["ban_stops"] == [0, 1]


def test_buckets():
    buckets = Buckets.make(max_sequences=20, max_batch_tokens=200)
    assert buckets.decode == (1, 2, 4, 8, 12, 16, 20)
    assert buckets.mixed == (16, 32, 64, 128, 200)
    assert buckets.sample == (1, 2, 4, 8, 16, 20)
    assert [buckets.decode_tokens(n) for n in (1, 2, 9, 20)] == [1, 2, 12, 20]
    assert buckets.mixed_tokens(129) == 200 and buckets.sample_rows(5) == 8
    assert Buckets.make(max_sequences=1, max_batch_tokens=8).decode == (1,)
    # With 4 devices on the tokens axis, every token bucket is a multiple of 4. The rows of the head need not be.
    split = Buckets.make(max_sequences=6, max_batch_tokens=30, multiple=4)
    assert split.decode == (4, 8) and split.mixed == (16, 32) and split.sample == (1, 2, 4, 6)


def test_rows_say_which_slot_their_adapter_is_in():
    scheduler = make_scheduler(adapter_slots=2)
    for name, adapter in (("a", make_adapter("x", 1)), ("b", None), ("c", make_adapter("y", 2))):
        scheduler.add(make_request(name, [1, 2, 3], adapter=adapter))
    plan = scheduler.schedule()
    assert plan is not None
    without, with_slots = (StepPacker(max_sequences=4, max_pages=8, has_adapters=has) for has in (False, True))
    rows = unpack(with_slots, with_slots.pack(plan, 16), 16)["rows"]
    assert rows[:3, -1].tolist() == [0, -1, 1]
    # Without adapters the buffer has no field for them, and is otherwise the same.
    assert without.layout(16).size == with_slots.layout(16).size - 4
    assert (unpack(without, without.pack(plan, 16), 16)["rows"] == rows[:, :-1]).all()
