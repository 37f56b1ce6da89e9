"""Whole models against transformers: golden tokens and log-probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.shipped import DEMO_MODEL
from tests.goldens.make_demo import NEW_TOKENS as NEW_DEMO_TOKENS
from tests.goldens.make_llama3_tiny import NEW_TOKENS, prompt

pytestmark = pytest.mark.optimized

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"


@pytest.mark.essential
def test_demo_greedy_tokens_and_logprobs(compile_cache: str):
    cases = json.loads((GOLDENS / "demo.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 7
    with LLM(DEMO_MODEL, dtype="float32", max_sequences=4, max_batch_tokens=64, compile_cache=compile_cache) as llm:
        for case in cases:
            if case["chat"] is None:
                assert llm.engine.encode(case["prompt"]) == case["prompt_ids"]
            else:
                messages = [{"role": "user", "content": case["chat"]}]
                assert llm.engine.tokenizer.apply_chat_template(messages) == case["prompt_ids"]
        params = SamplingParams(temperature=0, max_tokens=NEW_DEMO_TOKENS, logprobs=0, ignore_eos=True)
        prompts = [{"prompt_token_ids": case["prompt_ids"]} for case in cases]
        outputs = llm.generate(prompts, params, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        completion = output.outputs[0]
        assert completion.token_ids == case["ids"][len(case["prompt_ids"]) :]
        assert len(completion.token_ids) == NEW_DEMO_TOKENS and completion.logprobs is not None
        logprobs = [entry.logprob for entry in completion.logprobs]
        np.testing.assert_allclose(logprobs, case["token_logprobs"][-NEW_DEMO_TOKENS:], atol=1e-3)


def test_stories_greedy_tokens_and_logprobs(stories_llm: LLM, stories: Path):
    cases = json.loads((stories / "golden_greedy.json").read_text())["cases"]
    assert len(cases) == 6
    params = SamplingParams(temperature=0, max_tokens=128, logprobs=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": case["prompt_ids"]} for case in cases]
    for case, output in zip(cases, stories_llm.generate(prompts, params, use_tqdm=False), strict=True):
        expected = case["ids"][len(case["prompt_ids"]) :]
        completion = output.outputs[0]
        assert len(expected) == 128
        assert completion.token_ids == expected
        assert completion.logprobs is not None
        logprobs = [entry.logprob for entry in completion.logprobs]
        np.testing.assert_allclose(logprobs, case["token_logprobs"][-128:], atol=1e-3)
        assert stories_llm.engine.encode(case["prompt"]) == case["prompt_ids"]


@pytest.mark.essential
def test_llama3_greedy_tokens_and_logits(tiny_llm: LLM):
    golden = np.load(GOLDENS / "llama3_tiny.npz")
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=20, ignore_eos=True)
    # With 96 prompt tokens and a budget of 64, the prompt is prefilled in two chunks.
    output = tiny_llm.generate({"prompt_token_ids": prompt()}, params, use_tqdm=False)[0].outputs[0]
    assert output.token_ids == golden["tokens"].tolist()
    logits = golden["logits"].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert output.logprobs is not None
    for ours, theirs in zip(output.logprobs, logprobs, strict=True):
        tokens, values = zip(*ours.top, strict=True)
        np.testing.assert_allclose(values, theirs[list(tokens)], atol=2e-4)
        assert set(tokens) == set(np.argsort(-theirs)[:20].tolist())
