"""A server gives the log-probabilities of the trainer, with the same base and the adapter loaded into a live engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM, BaseConfig, DataConfig, LoraConfig, OptimizerConfig, SamplingParams, TrainConfig, finetune
from ryzjax.loading.weight_plan import WeightChoice
from tests.training.trained import trainers_log_probs

TOKENS = [5, 9, 30, 31, 40, 7, 22, 120, 80, 81]


@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_served_log_probs_are_the_trainers(
    weights: WeightChoice, tiny_model: Path, rows_file: Path, tmp_path: Path, compile_cache: str
) -> None:
    result = finetune(
        BaseConfig(model=str(tiny_model), dtype="float32", weights=weights, weights_group=32),
        DataConfig(data=(str(rows_file),), sequence_tokens=64),
        lora=LoraConfig(rank=4, alpha=8),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=0),
        train=TrainConfig(out=str(tmp_path), max_steps=8, batch_rows=2),
        show_progress=False,
    )
    assert result.adapter is not None
    expected = trainers_log_probs(str(tiny_model), result.adapter, weights=weights, weights_group=32)

    with LLM(
        str(tiny_model),
        dtype="float32",
        weights=weights,
        weights_group=32,
        max_loras=1,
        max_sequences=2,
        max_batch_tokens=32,
        page_size_tokens=8,
        compile_cache=compile_cache,
    ) as llm:
        llm.load_adapter("mine", result.exported)
        prompts = [{"prompt_token_ids": TOKENS}] * 2
        ask = SamplingParams(max_tokens=0, prompt_logprobs=0)
        outputs = llm.generate(prompts, ask, adapter=["mine", None], use_tqdm=False)  # pyright: ignore
    for output, wanted in zip(outputs, (expected(TOKENS, True), expected(TOKENS, False)), strict=True):
        found = output.prompt_logprobs
        assert found is not None
        served = np.array([entry.logprob for entry in found[1:] if entry is not None])
        np.testing.assert_allclose(served, wanted, atol=1e-5)
    assert np.abs(expected(TOKENS, True) - expected(TOKENS, False)).max() > 0.1
