"""Embeddings are the pooled hidden states of a full forward pass, with any chunks and neighbors."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.errors import ContextLengthError, EngineStoppedError, RequestError
from ryzjax.models.abstract import AbstractModel
from ryzjax.serving.device.prompt_programs import make_pool
from ryzjax.serving.frontend.embedding import finish_embedding
from ryzjax.serving.messages.request import EmbeddingOutput, Pooling
from tests.serving.full_forward import full_forward

RNG = np.random.default_rng(21)
PROMPTS = [RNG.integers(3, 380, size=n).tolist() for n in (1, 2, 17, 64, 65, 150, 40, 129)]
PAGE_BYTES = 2 * 3 * 4 * 8 * 16 * 4


def embed(llm: LLM, prompts: list[list[int]], pooling: Pooling | None = None) -> list[np.ndarray]:
    outputs = llm.embed([{"prompt_token_ids": p} for p in prompts], pooling=pooling, use_tqdm=False)
    return [output.embedding for output in outputs]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_a_full_forward_gives_the_same(tiny_llm: LLM):
    for prompt, full in zip(PROMPTS[1:], full_forward(tiny_llm, PROMPTS)[1:], strict=True):
        hidden = full.normed
        (last,), (mean,) = embed(tiny_llm, [prompt], "last"), embed(tiny_llm, [prompt], "mean")
        assert last.dtype == mean.dtype == np.float32 and last.shape == (hidden.shape[1],)
        np.testing.assert_allclose(last, unit(hidden[-1]), atol=2e-5)
        np.testing.assert_allclose(mean, unit(hidden.mean(axis=0)), atol=2e-5)
        assert np.abs(last - mean).max() > 0.01
        np.testing.assert_array_equal(embed(tiny_llm, [prompt])[0], last)


def test_raw_and_truncated_vectors(tiny_llm: LLM):
    prompt = {"prompt_token_ids": PROMPTS[2]}
    raw = tiny_llm.embed(prompt, pooling="mean", normalize=False, use_tqdm=False)[0].embedding
    np.testing.assert_allclose(raw, full_forward(tiny_llm, PROMPTS[2:3])[0].normed.mean(axis=0), atol=1e-4)
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    short = tiny_llm.embed(prompt, pooling="mean", dimensions=5, use_tqdm=False)[0].embedding
    np.testing.assert_allclose(short, unit(raw[:5]), atol=1e-6)
    cut = tiny_llm.embed(prompt, pooling="mean", dimensions=5, normalize=False, use_tqdm=False)[0].embedding
    np.testing.assert_array_equal(cut, raw[:5])
    np.testing.assert_array_equal(finish_embedding(np.zeros(3, np.float32), dimensions=2, normalize=True), [0, 0])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_among_neighbours_of_every_kind(tiny_llm: LLM, pooling: Pooling):
    alone = [embed(tiny_llm, [prompt], pooling)[0] for prompt in PROMPTS]
    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = tiny_llm.generate([{"prompt_token_ids": p} for p in PROMPTS], greedy, use_tqdm=False)

    async def mixed() -> list[object]:
        engine = tiny_llm.engine
        scored = SamplingParams(max_tokens=0, prompt_logprobs=1)
        return await asyncio.gather(
            *(engine.generate(prompt, greedy) for prompt in PROMPTS),
            *(engine.embed(prompt, pooling=pooling) for prompt in PROMPTS),
            *(engine.generate(prompt, scored) for prompt in PROMPTS),
        )

    outputs = asyncio.run(mixed())
    for one, other in zip(outputs[: len(PROMPTS)], expected, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids  # type: ignore[attr-defined]
    for output, vector in zip(outputs[len(PROMPTS) : 2 * len(PROMPTS)], alone, strict=True):
        assert isinstance(output, EmbeddingOutput)
        np.testing.assert_allclose(output.embedding, vector, atol=2e-5)
    tiny_llm.engine.scheduler.check_integrity()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_same_bits_beside_a_neighbour_in_steps_of_one_bucket(tiny_llm: LLM, pooling: Pooling):
    # 48 tokens use the bucket of 64, and so do 16 + 48. The matrix multiplications of another bucket may round
    # differently. Such differences come from the model and are within the tolerance above.
    prompt, neighbour = (RNG.integers(3, 380, size=n).tolist() for n in (48, 16))
    (alone,) = embed(tiny_llm, [prompt], pooling)
    np.testing.assert_array_equal(embed(tiny_llm, [prompt], pooling)[0], alone)
    np.testing.assert_array_equal(embed(tiny_llm, [neighbour, prompt], pooling)[1], alone)


@pytest.mark.parametrize("overlap", [True, False])
def test_after_preemption(tiny_llm: LLM, tiny_llama3: Path, compile_cache: str, overlap: bool):
    alone = [embed(tiny_llm, [prompt], "mean")[0] for prompt in PROMPTS]
    with LLM(
        str(tiny_llama3),
        max_sequences=32,
        max_batch_tokens=32,
        page_size_tokens=8,
        max_context_tokens=256,
        kv_memory=str(40 * PAGE_BYTES),
        overlap=overlap,
        pooling="mean",
        compile_cache=compile_cache,
    ) as llm:
        engine, scheduler = llm.engine, llm.engine.scheduler

        async def mixed() -> list[object]:
            grow = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
            return await asyncio.gather(
                *(engine.generate([5 + i] * 4, grow) for i in range(6)), *(engine.embed(p) for p in PROMPTS)
            )

        outputs = asyncio.run(mixed())[6:]
        assert scheduler.num_preemptions > 0
        for output, vector in zip(outputs, alone, strict=True):
            assert isinstance(output, EmbeddingOutput)
            np.testing.assert_allclose(output.embedding, vector, atol=2e-5)
        scheduler.check_integrity()
        assert scheduler.pool.num_used == 0


def test_a_sum_has_the_same_bits_however_it_is_cut_and_whatever_is_beside_it(tiny_llm: LLM):
    runner = tiny_llm.engine.runner
    model: AbstractModel = runner.model
    size, slots = 16, 4
    pool = jax.jit(make_pool(model))
    width = model.config.hidden_size
    tokens = RNG.normal(size=(40, width)).astype(np.float32) * np.float32(10.0) ** RNG.integers(-3, 4, (40, 1))

    def total(cuts: list[int], slot: int, noise: int) -> np.ndarray:
        """Returns the sum of `tokens`, cut into tiles at `cuts`. Each tile starts with `noise` tokens of a neighbor."""
        sums = jnp.full((slots, width), 7.0)
        totals = np.empty(0)
        for start, end in pairwise(cuts):
            rows = np.zeros((size, width), np.float32)
            rows[:noise] = RNG.normal(size=(noise, width))
            rows[noise : noise + end - start] = tokens[start:end]
            where = np.full(size, slots, np.int32)
            where[:noise] = (slot + 1) % slots
            where[noise : noise + end - start] = slot
            restarts = np.zeros(size, np.int32)
            restarts[noise] = start == 0
            sums, out = pool(runner.outer, sums, rows, where, restarts)
            totals = np.asarray(out)[noise + end - start - 1]
        return totals

    whole = total([0, 16, 32, 40], 0, 0)
    for cuts, slot, noise in (([0, 1, 14, 29, 40], 2, 0), ([0, 8, 16, 24, 32, 40], 3, 8), ([0, 3, 10, 25, 40], 1, 1)):
        np.testing.assert_array_equal(total(cuts, slot, noise), whole)


def test_a_prompt_may_fill_the_context_but_not_more(tiny_llm: LLM):
    context = tiny_llm.engine.max_context_tokens
    prompt = RNG.integers(3, 380, size=context).tolist()
    assert np.linalg.norm(embed(tiny_llm, [prompt], "mean")[0]) == pytest.approx(1, abs=1e-6)
    with pytest.raises(
        ContextLengthError,
        match=f"maximum context length is {context} tokens.*has {context + 1} tokens; shorten it, or split",
    ):
        embed(tiny_llm, [[*prompt, 5]])


@pytest.mark.parametrize(
    ("prompt", "settings", "message", "param"),
    [
        ([], {}, "the prompt is empty", "prompt"),
        ([384], {}, "token id 384; expected 0 to 383", "prompt"),
        ([-1], {}, "token id -1", "prompt"),
        ([5], {"pooling": "max"}, "pooling='max' is not known; expected 'last' or 'mean'", "pooling"),
        ([5], {"pooling": ""}, "pooling='' is not known", "pooling"),
        ([5], {"dimensions": 0}, "dimensions=0 is out of range; expected an integer from 1 to", "dimensions"),
        ([5], {"dimensions": 10**6}, "dimensions=1000000 is out of range", "dimensions"),
        ([5], {"dimensions": True}, "dimensions=True is out of range", "dimensions"),
    ],
)
def test_bad_requests(tiny_llm: LLM, prompt: list[int], settings: dict[str, object], message: str, param: str):
    with pytest.raises(RequestError, match=message) as error:
        tiny_llm.embed({"prompt_token_ids": prompt}, use_tqdm=False, **settings)  # type: ignore[arg-type]
    assert error.value.param == param


async def test_cancelling_frees_its_pages_and_metrics_count(tiny_llm: LLM):
    engine, scheduler = tiny_llm.engine, tiny_llm.engine.scheduler
    before = metric(tiny_llm, "embeddings_total"), metric(tiny_llm, "prompt_tokens_scored_total")
    finished = metric(tiny_llm, 'request_success_total{finished_reason="stop"')
    await engine.embed(PROMPTS[2])
    await engine.generate(PROMPTS[2], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert metric(tiny_llm, "embeddings_total") == before[0] + 1
    assert metric(tiny_llm, "prompt_tokens_scored_total") == before[1] + len(PROMPTS[2]) - 1
    assert metric(tiny_llm, 'request_success_total{finished_reason="stop"') == finished + 1

    tasks = [asyncio.create_task(engine.embed(PROMPTS[5])) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    for _ in range(500):
        if engine.is_idle:
            break
        await asyncio.sleep(0.01)
    assert engine.num_open == 0 and scheduler.pool.num_used == 0
    scheduler.check_integrity()


def metric(llm: LLM, name: str) -> float:
    lines = llm.engine.metrics.render()[0].decode().splitlines()
    (value,) = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("ryzjax:" + name)]
    return float(value)


async def test_a_stopped_engine_says_so(tiny_llama3: Path, compile_cache: str):
    llm = LLM(str(tiny_llama3), max_sequences=2, max_batch_tokens=16, page_size_tokens=8, compile_cache=compile_cache)
    llm.close()
    with pytest.raises(EngineStoppedError):
        await llm.engine.embed([5])
