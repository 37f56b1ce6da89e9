"""The quality that a trained model (stories260K) loses by quantizing, on held-out text that it generated."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import resolve_source
from ryzjax.evaluation.divergence import Divergence, ReferenceStates, divergence, reference_states
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.quantize import quantize
from ryzjax.sharding import Layout, Placement

pytestmark = [pytest.mark.optimized, pytest.mark.slow]

ONE = Placement(Layout.load("single"), jax.devices()[:1])
TOKENS = 256


@pytest.fixture(scope="module")
def sequences(stories: Path, compile_cache: str) -> np.ndarray:
    """Token ids of stories that the model generated, concatenated, int32 [104, 256]."""
    with LLM(str(stories), dtype="float32", max_sequences=32, compile_cache=compile_cache) as llm:
        settings = [SamplingParams(temperature=1.0, max_tokens=400, seed=i) for i in range(96)]
        outputs = llm.generate(["Once upon a time"] * len(settings), settings, use_tqdm=False)
    ids = [token for output in outputs for token in (*output.prompt_token_ids, *output.outputs[0].token_ids)]
    return np.asarray(ids[: 104 * TOKENS], np.int32).reshape(104, TOKENS)


@pytest.fixture(scope="module")
def reference(stories: Path, sequences: np.ndarray) -> ReferenceStates:
    source = resolve_source(str(stories))
    model = stored_model(source, model_config_from_hf(source.config, source.generation), ONE)
    leaves = tuple(load_weights(source, model).values())
    held_out = sequences[72:].reshape(-1).tolist()
    return reference_states(model, leaves, held_out, context_tokens=TOKENS, stride_tokens=TOKENS // 2)


@pytest.fixture(scope="module")
def calibration(sequences: np.ndarray) -> Calibration:
    return Calibration(tokens=sequences[:64], held_out=sequences[64:72], source="stories", sha256="stories")


def cost(
    stories: Path, out: Path, recipe: Recipe, reference: ReferenceStates, calibration: Calibration | None
) -> Divergence:
    source = resolve_source(str(stories))
    config = model_config_from_hf(source.config, source.generation)
    quantize(source, config, ONE, recipe, out, calibration=calibration, show_progress=False).finish()
    written = resolve_source(str(out))
    model = stored_model(written, model_config_from_hf(written.config, written.generation), ONE)
    return divergence(reference, model, tuple(load_weights(written, model).values()))


def test_int8(stories: Path, reference: ReferenceStates, tmp_path: Path):
    found = cost(stories, tmp_path / "out", Recipe(method="rtn", bits=8, group_size=32), reference, None)
    assert found.mean_kl < 1e-3 and found.top1_agreement > 0.98


def test_int4_by_gptq_is_within_four_percent_and_no_worse_than_rounding(
    stories: Path, reference: ReferenceStates, calibration: Calibration, tmp_path: Path
):
    plain = cost(stories, tmp_path / "rtn", Recipe(method="rtn", group_size=32), reference, None)
    found = cost(stories, tmp_path / "gptq", Recipe(method="gptq", group_size=32), reference, calibration)
    assert found.perplexity < 1.04 * found.reference_perplexity
    assert found.perplexity < plain.perplexity and found.mean_kl < 0.7 * plain.mean_kl
