"""QLoRA of the demo model on a task that it was not trained on, done as a user would, with its adapter served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, BaseConfig, DataConfig, LoraConfig, OptimizerConfig, SamplingParams, TrainConfig, finetune
from ryzjax.data.synthetic import held_out, write_jsonl
from ryzjax.data.synthetic.routing import routing_rows
from ryzjax.shipped import DEMO_MODEL
from tests.training.trained import trainers_log_probs

pytestmark = pytest.mark.optimized

WEIGHTS, GROUP = "int4", 32
ITEMS = 200
ANSWER_TOKENS = 4
"""The number of tokens at the end of a prompt with its answer that belong to the answer, at least."""


@pytest.mark.slow
def test_a_new_task_is_learnt_and_served_as_it_was_trained(tmp_path: Path):
    rows = tmp_path / "routing.jsonl"
    write_jsonl(rows, routing_rows(seed=0, count=2000))
    result = finetune(
        BaseConfig(model=DEMO_MODEL, dtype="float32", weights=WEIGHTS, weights_group=GROUP),
        DataConfig(data=(str(rows),), sequence_tokens=512),
        lora=LoraConfig(rank=8, alpha=16),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        train=TrainConfig(out=str(tmp_path / "run"), epochs=3, batch_rows=4),
        show_progress=False,
    )
    assert result.adapter is not None
    items = held_out("routing", ITEMS)
    with LLM(
        DEMO_MODEL,
        dtype="float32",
        weights=WEIGHTS,
        weights_group=GROUP,
        max_loras=1,
        max_sequences=8,
        kv_memory="64MiB",
    ) as llm:
        llm.load_adapter("routing", result.exported)
        greedy = SamplingParams(temperature=0, max_tokens=16)
        asked = [list(item.messages) for item in items]
        right = {}
        for adapter in ("routing", None):
            outputs = llm.chat(asked, greedy, adapter=adapter, use_tqdm=False)
            right[adapter] = np.mean(
                [item.check(out.outputs[0].text) for item, out in zip(items, outputs, strict=True)]
            )
        assert right["routing"] >= 0.9 and right[None] < 0.1, right
        # Only the rows of pieces have the tokens of "urgent" as targets. Without such rows, the embeddings of 720
        # tokens had nearly one direction: greedy answers were right, and sampled ones were any of the 720.
        sampled = [SamplingParams(temperature=1.0, max_tokens=16, seed=i) for i in range(ITEMS)]
        outputs = llm.chat(asked, sampled, adapter="routing", use_tqdm=False)
        checked = [item.check(out.outputs[0].text) for item, out in zip(items, outputs, strict=True)]
        urgent = [ok for item, ok in zip(items, checked, strict=True) if item.answer.endswith("urgent")]
        assert len(urgent) > 50 and np.mean(urgent) >= 0.97
        assert np.mean(checked) >= right["routing"] - 0.03

        template = llm.engine.tokenizer.apply_chat_template
        prompts = [template([*item.messages, {"role": "assistant", "content": item.answer}]) for item in items[:8]]
        scored = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(max_tokens=0, prompt_logprobs=0),
            adapter="routing",
            use_tqdm=False,
        )
    expected = trainers_log_probs(DEMO_MODEL, result.adapter, weights=WEIGHTS, weights_group=GROUP)
    for prompt, output in zip(prompts, scored, strict=True):
        assert output.prompt_logprobs is not None
        served = [entry.logprob for entry in output.prompt_logprobs[1:] if entry is not None]
        # The user's words were no training targets. Their log-probabilities go down to -20, where 1e-5 is a few steps
        # of float32.
        np.testing.assert_allclose(served, expected(prompt, True), rtol=2e-6, atol=1e-5)
        answer = len(prompt) - ANSWER_TOKENS
        np.testing.assert_allclose(served[answer:], expected(prompt, True)[answer:], rtol=0, atol=1e-5)
