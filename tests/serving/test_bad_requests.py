"""Bad requests get clear errors, affect no other request, and leave no resource in use."""

from __future__ import annotations

import asyncio
import random

import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.errors import ContextLengthError, EngineFailedError, QueueFullError, RequestError
from tests.serving.test_batching import PROMPTS, settings, until_idle


async def test_prompt_over_the_context(tiny_llm: LLM):
    with pytest.raises(ContextLengthError, match=r"maximum context length is 512 tokens\. However") as error:
        await tiny_llm.engine.generate([5] * 512, SamplingParams())
    assert error.value.code == "context_length_exceeded"
    fits = await tiny_llm.engine.generate([5] * 511, SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(fits.outputs[0].token_ids) == 1 and fits.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([], {}, "prompt is empty"),
        ([384], {}, "token id 384"),
        ([-1], {}, "token id -1"),
        ([5], {"logit_bias": {400: 1.0}}, "logit_bias contains token id 400"),
        ([5], {"stop_token_ids": [9999]}, "stop_token_ids contains token id 9999"),
        ([5] * 500, {"min_tokens": 20, "max_tokens": 30}, "at least 20"),
    ],
)
async def test_bad_prompts_name_the_value(tiny_llm: LLM, prompt: list[int], params: dict, words: str):
    with pytest.raises(RequestError, match=words):
        await tiny_llm.engine.generate(prompt, SamplingParams(**params))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1000),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3),
        ("frequency_penalty", float("inf")),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("logprobs", 21),
        ("seed", 2**64),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [-1]),
        ("logit_bias", {1: 101.0}),
    ],
)
def test_bad_settings_name_field_and_value(field: str, value: object):
    with pytest.raises(RequestError, match=field) as error:
        SamplingParams(**{field: value})
    assert error.value.param == field


async def test_queue_full_and_request_id_in_use(tiny_llm: LLM):
    engine = tiny_llm.engine
    long = SamplingParams(max_tokens=400, ignore_eos=True, n=96)
    streams = [engine.stream([5], long, request_id=str(i)) for i in range(3)]
    # Each stream submits its sequences before it waits for a delta.
    firsts = [asyncio.ensure_future(anext(stream)) for stream in streams]
    assert engine.max_open_sequences == 288
    while engine.num_open < 288:
        await asyncio.sleep(0.001)
    with pytest.raises(QueueFullError, match="at most 288") as error:
        await engine.generate([5], SamplingParams())
    assert error.value.retry_after_s >= 1
    await firsts[0]
    await streams[0].aclose()
    with pytest.raises(RequestError, match="in use"):
        await engine.generate([5], SamplingParams(), request_id="1")
    for first, stream in zip(firsts[1:], streams[1:], strict=True):
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await stream.aclose()
    await until_idle(tiny_llm)
    assert engine.num_open == 0


async def test_fuzz_good_requests_among_bad_and_cancelled_ones(tiny_llm: LLM):
    rng = random.Random(0)
    good = {i: (await tiny_llm.engine.generate(PROMPTS[i], settings(i))).outputs[0] for i in range(8)}
    compiled = set(tiny_llm.engine.runner.programs)

    async def bad() -> None:
        with pytest.raises(RequestError):
            await tiny_llm.engine.generate(rng.choice([[], [10**6], [3] * 600, [-5]]), SamplingParams())

    async def cancelled() -> None:
        params = SamplingParams(max_tokens=rng.randint(5, 90), ignore_eos=True, n=rng.randint(1, 3), seed=1)
        stream = tiny_llm.engine.stream(PROMPTS[rng.randrange(32)], params)
        for _ in range(rng.randint(1, 5)):
            await anext(stream, None)
        await stream.aclose()

    async def fine(i: int) -> None:
        output = (await tiny_llm.engine.generate(PROMPTS[i], settings(i))).outputs[0]
        assert output.token_ids == good[i].token_ids and output.text == good[i].text

    jobs = [bad() for _ in range(150)] + [cancelled() for _ in range(60)] + [fine(i % 8) for i in range(60)]
    rng.shuffle(jobs)
    limit = asyncio.Semaphore(60)

    async def limited(job) -> None:
        async with limit:
            await job

    await asyncio.gather(*(limited(job) for job in jobs))
    await until_idle(tiny_llm)
    engine = tiny_llm.engine
    engine.scheduler.check_integrity()
    assert engine.scheduler.pool.num_used == 0 and tiny_llm.engine.num_open == 0
    assert set(engine.runner.programs) == compiled
    metrics = engine.metrics.render()[0].decode()
    assert 'ryzjax:recompiles_total{model_name="llama3-tiny"} 0.0' in metrics


async def test_a_failing_step_ends_requests_with_an_error_not_a_hang(tiny_llama3, compile_cache: str):
    with LLM(str(tiny_llama3), max_sequences=2, max_batch_tokens=16, compile_cache=compile_cache) as llm:
        runner = llm.engine.runner

        def explode(plan: object) -> None:
            raise RuntimeError("device lost")

        runner.dispatch = explode
        with pytest.raises(EngineFailedError, match="device lost"):
            await llm.engine.generate([5, 6], SamplingParams())
        assert not llm.engine.is_healthy and not llm.engine.is_ready
        with pytest.raises(EngineFailedError, match="restart"):
            await llm.engine.generate([5, 6], SamplingParams())
