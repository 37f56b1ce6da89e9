"""Callers that are gone, and requests that fail alone: the engine continues for all others."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.errors import EngineStoppedError, QueueFullError
from ryzjax.serving.device.step_result import StepResult
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.engine.listeners import Listeners, LoopListener, ThreadListener
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.request import EngineRequest, TokenEvent
from tests.serving.test_batching import PROMPTS, until_idle

LONG = SamplingParams(max_tokens=450, ignore_eos=True, seed=1)


async def until_closed(llm: LLM) -> None:
    for _ in range(3000):
        if llm.engine.is_idle:
            break
        await asyncio.sleep(0.01)
    assert llm.engine.num_open == 0 and llm.engine.scheduler.pool.num_used == 0
    llm.engine.scheduler.check_integrity()


def test_a_closed_event_loop_loses_its_requests_alone(tiny_llm: LLM, caplog: pytest.LogCaptureFixture):
    others = tiny_llm.stream({"prompt_token_ids": PROMPTS[1]}, LONG)
    first = next(others)
    loop = asyncio.new_event_loop()
    gone = [tiny_llm.engine.stream(PROMPTS[i], LONG) for i in (2, 3)]
    for stream in gone:
        loop.run_until_complete(anext(stream))
    waiting = tiny_llm.engine.num_open
    assert waiting == 3
    # There is no aclose(). The loop is closed while its streams are open, as after a notebook cell that failed.
    with caplog.at_level(logging.WARNING, "ryzjax.serving.engine.listeners"):
        loop.close()
        tokens = list(first.token_ids)
        for delta in others:
            tokens += delta.token_ids
    assert len(tokens) == 450
    asyncio.run(until_closed(tiny_llm))
    assert "takes no more events (RuntimeError('Event loop is closed'))" in caplog.text
    assert tiny_llm.engine.is_healthy
    assert len(tiny_llm.generate("a", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)) == 1
    del gone


def test_a_dropped_listener_is_a_closed_request(tiny_llm: LLM):
    loop = asyncio.new_event_loop()
    stream = tiny_llm.engine.stream(PROMPTS[2], LONG)
    loop.run_until_complete(anext(stream))
    assert tiny_llm.engine.num_open == 1
    loop.close()
    del stream
    gc.collect()
    asyncio.run(until_closed(tiny_llm))


class BrokenLoop:
    """An event loop of another implementation, with its own way of failing."""

    def call_soon_threadsafe(self, call: object) -> None:
        raise OSError("the pipe is gone")


def request(request_id: str) -> EngineRequest:
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=(5, 6),
        params=SamplingParams(),
        stop_token_ids=frozenset(),
        max_new_tokens=4,
        seed=0,
        arrival_s=0.0,
    )


def test_deliver_drops_who_cannot_hear():
    listeners = Listeners(max_open=3, retry_after_s=lambda: 7)
    fine, broken = ThreadListener(), ThreadListener()
    broken.loop = BrokenLoop()  # type: ignore[assignment]
    listeners.add([request("fine")], fine)
    listeners.add([request("broken"), request("silent")], broken)
    with pytest.raises(QueueFullError) as error:
        listeners.add([request("more")], fine)
    assert error.value.retry_after_s == 7
    events = [TokenEvent(request_id=name, token_ids=(1,)) for name in ("broken", "fine", "unknown")]
    assert sorted(listeners.deliver(events)) == ["broken", "unknown"]
    assert fine.get() is events[1]
    # A dead listener without events so far is noticed at its first event.
    assert len(listeners) == 2
    assert listeners.deliver([TokenEvent(request_id="silent")]) == ["silent"]
    assert listeners.end_all("over") == ["fine"]
    assert isinstance(fine.get().error, EngineStoppedError) and len(listeners) == 0


def test_end_all_reaches_the_others_past_a_broken_loop():
    listeners = Listeners(max_open=2, retry_after_s=lambda: 1)
    fine, broken = ThreadListener(), ThreadListener()
    broken.loop = BrokenLoop()  # type: ignore[assignment]
    listeners.add([request("broken")], broken)
    listeners.add([request("fine")], fine)
    listeners.end_all("over")
    assert str(fine.get().error) == "over"


async def test_another_caller_cannot_close_a_request():
    listeners = Listeners(max_open=2, retry_after_s=lambda: 1)
    mine, other = LoopListener(), LoopListener()
    listeners.add([request("a")], mine)
    assert not listeners.remove("a", other) and len(listeners) == 1
    assert listeners.remove("a", mine) and not listeners.remove("a", mine)


def count_failed(llm: LLM) -> float:
    lines = llm.engine.metrics.render()[0].decode().splitlines()
    [line] = [line for line in lines if "request_success_total" in line and 'finished_reason="error"' in line]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize("where", ["prompt_scores", "logprobs", "pooled"])
async def test_a_request_whose_results_cannot_be_read_fails_alone(
    tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch, where: str
):
    bad = SamplingParams(max_tokens=20, logprobs=7, prompt_logprobs=7, ignore_eos=True)
    failed = count_failed(tiny_llm)
    if where == "pooled":
        event = Engine._vector_event

        def explode(self: Engine, sequence, total):
            if sequence.prompt_len == 13:
                raise ValueError("no such column")
            return event(self, sequence, total)

        monkeypatch.setattr(Engine, "_vector_event", explode)
        broken = tiny_llm.engine.embed([5] * 13)
        fine = [tiny_llm.engine.embed([5] * 12)]
    else:
        read = getattr(StepResult, where)

        def explode(self: StepResult, *arguments: int):
            if arguments[-1] == 7:
                raise ValueError("no such column")
            return read(self, *arguments)

        monkeypatch.setattr(StepResult, where, explode)
        broken = tiny_llm.engine.generate(PROMPTS[7], bad)
        fine = [tiny_llm.engine.generate(PROMPTS[i], SamplingParams(max_tokens=30, logprobs=1)) for i in (1, 8)]
    results = await asyncio.gather(broken, *fine, return_exceptions=True)
    assert isinstance(results[0], RuntimeError)
    assert "failed in the engine (ValueError: no such column); other requests go on" in str(results[0])
    assert not any(isinstance(result, BaseException) for result in results[1:])
    assert tiny_llm.engine.is_healthy and count_failed(tiny_llm) == failed + 1
    await until_idle(tiny_llm)
    await until_closed(tiny_llm)


async def test_a_request_that_cannot_be_queued_fails_alone(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch):
    add = Scheduler.add

    def explode(self: Scheduler, request: EngineRequest):
        if request.seed == 13:
            raise TypeError("not a prompt")
        return add(self, request)

    monkeypatch.setattr(Scheduler, "add", explode)
    with pytest.raises(RuntimeError, match="TypeError: not a prompt"):
        await tiny_llm.engine.generate([5], SamplingParams(seed=13))
    assert len((await tiny_llm.engine.generate([5], SamplingParams(seed=12))).outputs) == 1


async def test_a_refusal_keeps_its_type(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Scheduler, request: EngineRequest):
        raise QueueFullError("full", retry_after_s=9)

    monkeypatch.setattr(Scheduler, "add", refuse)
    with pytest.raises(QueueFullError) as error:
        await tiny_llm.engine.generate([5], SamplingParams())
    assert error.value.retry_after_s == 9
