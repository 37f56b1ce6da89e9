"""Log-probabilities of the prompt equal those of a full forward pass and of decoding, beside any other requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, RequestOutput, SamplingParams
from ryzjax.errors import RequestError
from ryzjax.serving.messages.request import TokenLogprobs
from tests.serving.full_forward import full_forward

RNG = np.random.default_rng(8)
# A prompt of one token, one without chunks, and chunks of every length. Steps have 64 tokens.
PROMPTS = [RNG.integers(3, 380, size=n).tolist() for n in (1, 2, 3, 17, 64, 65, 66, 150, 40, 129)]
SCORE_ONLY = SamplingParams(max_tokens=0, prompt_logprobs=3)
PAGE_BYTES = 2 * 3 * 4 * 8 * 16 * 4


def scores(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    return llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)


def entries(output: RequestOutput) -> list[TokenLogprobs]:
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    rest = output.prompt_logprobs[1:]
    assert [entry.token_id for entry in rest if entry] == output.prompt_token_ids[1:]
    return [entry for entry in rest if entry is not None]


def assert_same(one: RequestOutput, other: RequestOutput) -> None:
    for ours, theirs in zip(entries(one), entries(other), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert abs(ours.rank - theirs.rank) <= 1  # a tie within rounding
        np.testing.assert_allclose([lp for _, lp in ours.top], [lp for _, lp in theirs.top], atol=1e-4)


@pytest.fixture(scope="module")
def alone(tiny_llm: LLM) -> list[RequestOutput]:
    return [scores(tiny_llm, [prompt], SCORE_ONLY)[0] for prompt in PROMPTS]


def test_a_full_forward_gives_the_same(tiny_llm: LLM, alone: list[RequestOutput]):
    for prompt, output, full in zip(PROMPTS, alone, full_forward(tiny_llm, PROMPTS), strict=True):
        assert output.outputs[0].token_ids == [] and output.outputs[0].finish_reason == "length"
        assert len(entries(output)) == len(prompt) - 1
        for row, token, entry in zip(full.logprobs, prompt[1:], entries(output), strict=False):
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            low, high = (int((row >= row[token] + d).sum()) for d in (1e-4, -1e-4))
            assert max(low, 1) <= entry.rank <= high
            np.testing.assert_allclose([lp for _, lp in entry.top], np.sort(row)[::-1][:3], atol=1e-4)
            np.testing.assert_allclose([lp for _, lp in entry.top], row[[t for t, _ in entry.top]], atol=1e-4)


def test_a_decode_of_the_same_tokens_gives_the_same(tiny_llm: LLM):
    greedy = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True, logprobs=2, frequency_penalty=0.5)
    output = scores(tiny_llm, [PROMPTS[3]], greedy)[0].outputs[0]
    whole = [*PROMPTS[3], *output.token_ids]
    again = scores(tiny_llm, [whole], SamplingParams(max_tokens=0, prompt_logprobs=2))[0]
    for ours, theirs in zip(entries(again)[len(PROMPTS[3]) - 1 :], output.logprobs or (), strict=True):
        assert (ours.token_id, ours.rank) == (theirs.token_id, theirs.rank)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_what_follows_the_prompt_is_as_without_scores(tiny_llm: LLM):
    drawn = {"temperature": 1.0, "seed": 5, "max_tokens": 12, "ignore_eos": True, "logprobs": 1}
    plain = scores(tiny_llm, PROMPTS, SamplingParams(**drawn))
    scored = scores(tiny_llm, PROMPTS, SamplingParams(**drawn, prompt_logprobs=0, n=2))
    for one, other in zip(plain, scored, strict=True):
        assert one.prompt_logprobs is None
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert len(other.outputs[1].token_ids) == 12
        assert all(entry.top == () and entry.rank >= 1 for entry in entries(other))


def test_among_neighbours(tiny_llm: LLM, alone: list[RequestOutput]):
    prompts, params = [], []
    for i, prompt in enumerate(PROMPTS):
        prompts += [{"prompt_token_ids": prompt}, {"prompt_token_ids": PROMPTS[-1 - i]}]
        params += [SCORE_ONLY, SamplingParams(max_tokens=20, seed=i, ignore_eos=True)]
    outputs = tiny_llm.generate(prompts, params, use_tqdm=False)
    for expected, output in zip(alone, outputs[::2], strict=True):
        assert_same(output, expected)
    for i, output in enumerate(outputs[1::2]):
        solo = tiny_llm.generate(prompts[2 * i + 1], params[2 * i + 1], use_tqdm=False)[0]
        assert output.outputs[0].token_ids == solo.outputs[0].token_ids and output.prompt_logprobs is None
    tiny_llm.engine.scheduler.check_integrity()


@pytest.mark.parametrize("overlap", [True, False])
def test_after_preemption(tiny_llama3: Path, compile_cache: str, alone: list[RequestOutput], overlap: bool):
    with LLM(
        str(tiny_llama3),
        max_sequences=32,
        max_batch_tokens=64,
        page_size_tokens=8,
        max_context_tokens=256,
        kv_memory=str(40 * PAGE_BYTES),
        overlap=overlap,
        compile_cache=compile_cache,
    ) as llm:
        scheduler = llm.engine.scheduler
        prompts = [*PROMPTS, *PROMPTS]
        params = [SamplingParams(max_tokens=40, ignore_eos=True, prompt_logprobs=3, seed=1)] * len(PROMPTS)
        params += [SCORE_ONLY] * len(PROMPTS)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        assert scheduler.num_preemptions > 0
        for expected, output in zip([*alone, *alone], outputs, strict=True):
            assert_same(output, expected)
        scheduler.check_integrity()
        assert scheduler.pool.num_used == 0


async def test_the_first_delta_has_the_prompts_logprobs(tiny_llm: LLM):
    params = SamplingParams(max_tokens=3, prompt_logprobs=1, n=2, ignore_eos=True, seed=0)
    deltas = [delta async for delta in tiny_llm.engine.stream(PROMPTS[7], params)]
    assert deltas[0].prompt_logprobs is not None and len(deltas[0].prompt_logprobs) == len(PROMPTS[7])
    assert deltas[0].token_ids == () and deltas[0].finish_reason is None
    assert all(delta.prompt_logprobs is None for delta in deltas[1:])
    assert sum(len(delta.token_ids) for delta in deltas) == 6


def test_a_prompt_may_fill_the_context(tiny_llm: LLM):
    context = tiny_llm.engine.max_context_tokens
    prompt = RNG.integers(3, 380, size=context).tolist()
    assert len(entries(scores(tiny_llm, [prompt], SCORE_ONLY)[0])) == context - 1
    with pytest.raises(RequestError, match="the prompt has 513 tokens; shorten it"):
        scores(tiny_llm, [[*prompt, 5]], SCORE_ONLY)
    with pytest.raises(RequestError, match="at least 1 must be generated"):
        scores(tiny_llm, [prompt], SamplingParams(max_tokens=1, prompt_logprobs=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs=21 is out of range"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1 is out of range"),
        ({"prompt_logprobs": True}, "prompt_logprobs=True is not an integer"),
        ({"max_tokens": 0}, "max_tokens=0 is out of range; expected 1"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "n": 2}, "n=2 with max_tokens=0"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "min_tokens": 1}, "min_tokens=1 is larger"),
    ],
)
def test_bad_settings(settings: dict[str, int], message: str):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**settings)  # pyright: ignore[reportArgumentType]
