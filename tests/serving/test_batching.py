"""Continuous batching: a request has the same result alone and beside any other requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, RequestOutput, SamplingParams
from ryzjax.serving.messages.request import CompletionOutput

RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(3, 300, size=int(n)).tolist() for n in RNG.integers(1, 150, size=32)]


def settings(i: int) -> SamplingParams:
    """Returns settings that differ per request: greedy, sampled, truncated, penalized, biased."""
    return SamplingParams(
        max_tokens=8 + 3 * (i % 11),
        temperature=(0.0, 0.7, 1.3)[i % 3],
        top_k=(0, 5, 0, 40)[i % 4],
        top_p=(1.0, 0.9)[i % 2],
        min_p=(0.0, 0.02)[i % 5 == 0],
        repetition_penalty=(1.0, 1.2)[i % 4 == 1],
        frequency_penalty=(0.0, 0.5)[i % 6 == 2],
        presence_penalty=(0.0, 0.4)[i % 6 == 3],
        logit_bias={7: 2.0} if i % 7 == 0 else {},
        min_tokens=4 if i % 5 == 1 else 0,
        seed=i,
        logprobs=2,
    )


def generate(llm: LLM, wanted: list[int]) -> list[RequestOutput]:
    return llm.generate(
        [{"prompt_token_ids": PROMPTS[i]} for i in wanted], [settings(i) for i in wanted], use_tqdm=False
    )


def assert_same(one: CompletionOutput, other: CompletionOutput) -> None:
    assert one.token_ids == other.token_ids
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.logprobs is not None and other.logprobs is not None
    ours, theirs = ([entry.logprob for entry in o.logprobs or ()] for o in (one, other))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def alone(tiny_llm: LLM) -> list[CompletionOutput]:
    return [generate(tiny_llm, [i])[0].outputs[0] for i in range(len(PROMPTS))]


def test_among_31_neighbours(tiny_llm: LLM, alone: list[CompletionOutput]):
    for expected, output in zip(alone, generate(tiny_llm, list(range(32))), strict=True):
        assert_same(output.outputs[0], expected)
    tiny_llm.engine.scheduler.check_integrity()


@pytest.mark.parametrize("overlap", [True, False])
def test_after_preemption(tiny_llama3: Path, compile_cache: str, alone: list[CompletionOutput], overlap: bool):
    # 40 pages of 8 tokens for 32 sequences that want up to 188 tokens each.
    page_bytes = 2 * 3 * 4 * 8 * 16 * 4
    with LLM(
        str(tiny_llama3),
        max_sequences=32,
        max_batch_tokens=64,
        page_size_tokens=8,
        max_context_tokens=256,
        kv_memory=str(40 * page_bytes),
        overlap=overlap,
        compile_cache=compile_cache,
    ) as llm:
        outputs = generate(llm, list(range(32)))
        assert llm.engine.scheduler.num_preemptions > 0
        for expected, output in zip(alone, outputs, strict=True):
            assert_same(output.outputs[0], expected)
        llm.engine.scheduler.check_integrity()
        assert llm.engine.scheduler.pool.num_used == 0
        assert b"ryzjax:num_preemptions_total{" in llm.engine.metrics.render()[0]


async def test_requests_join_mid_flight(tiny_llm: LLM, alone: list[CompletionOutput]):
    scheduler = tiny_llm.engine.scheduler
    long = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, seed=0)
    first = tiny_llm.engine.stream(PROMPTS[0], long)
    tokens = [token for _ in range(3) for token in (await anext(first)).token_ids]
    assert scheduler.num_running == 1
    # These start and end while the first is still running.
    joined = [await tiny_llm.engine.generate(PROMPTS[i], settings(i)) for i in (1, 2)]
    for i, output in zip((1, 2), joined, strict=True):
        assert_same(output.outputs[0], alone[i])
    assert scheduler.num_running == 1
    async for delta in first:
        tokens += delta.token_ids
    expected = await tiny_llm.engine.generate(PROMPTS[0], long)
    assert tokens == expected.outputs[0].token_ids and len(tokens) == 150


async def test_closing_a_stream_frees_its_pages(tiny_llm: LLM):
    pool = tiny_llm.engine.scheduler.pool
    streams = [
        tiny_llm.engine.stream(p, SamplingParams(max_tokens=200, ignore_eos=True, n=2, seed=1)) for p in PROMPTS[:6]
    ]
    for stream in streams:
        await anext(stream)
    assert pool.num_used > 0
    for stream in streams:
        await stream.aclose()
    await until_idle(tiny_llm)
    assert pool.num_used == 0
    tiny_llm.engine.scheduler.check_integrity()


async def test_n_completions_differ_and_repeat(tiny_llm: LLM):
    params = SamplingParams(n=4, temperature=1.0, seed=11, max_tokens=20, ignore_eos=True)
    first = await tiny_llm.engine.generate(PROMPTS[0], params)
    again = await tiny_llm.engine.generate(PROMPTS[0], params)
    texts = [tuple(output.token_ids) for output in first.outputs]
    assert len(set(texts)) == 4
    assert texts == [tuple(output.token_ids) for output in again.outputs]


async def test_stop_strings_stop_tokens_and_min_tokens(tiny_llm: LLM):
    free = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    whole = (await tiny_llm.engine.generate(PROMPTS[3], free)).outputs[0]
    token = whole.token_ids[10]
    first = whole.token_ids.index(token)
    by_token = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop_token_ids=[token])
    stopped = (await tiny_llm.engine.generate(PROMPTS[3], by_token)).outputs[0]
    assert stopped.token_ids == whole.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", token)

    banned = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop_token_ids=[token], min_tokens=30)
    later = (await tiny_llm.engine.generate(PROMPTS[3], banned)).outputs[0]
    assert token not in later.token_ids[:30] and len(later.token_ids) >= 30

    stop = whole.text[8:11]
    by_text = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stop)
    cut = (await tiny_llm.engine.generate(PROMPTS[3], by_text)).outputs[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    await until_idle(tiny_llm)
    assert tiny_llm.engine.scheduler.pool.num_used == 0


async def until_idle(llm: LLM) -> None:
    """Waits until the engine's thread has handled every message."""
    for _ in range(500):
        if llm.engine.is_idle:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine did not become idle")
