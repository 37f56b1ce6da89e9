"""Quantized KV caches behind the engine: the same answers whatever runs beside, and the perplexity they cost."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ryzjax import LLM, RequestOutput, SamplingParams
from ryzjax.checkpoint.kv_scales import kv_scale_tensors
from ryzjax.errors import ConfigError
from ryzjax.quantizing.kv_calibration import calibrate_kv_scales, observe_kv_maxima
from ryzjax.serving.messages.config import EngineOptions
from tests.serving.test_batching import PROMPTS, settings

KV_DTYPES = ("int8", "fp8_e4m3")
WANTED = list(range(0, 32, 2))
LOGPROB_TOLERANCE = {"int8": 0.01, "fp8_e4m3": 0.05}
"""A key differs in its last bits with the shape of the step that computes it, so that now and then a number of it is
rounded to its other neighbour: a 127th of the largest for int8, up to an eighth of itself for float8."""


MOST_LOST = {"int8": 0.003, "fp8_e4m3": 0.06}
"""Of a trained model's perplexity on text of its own."""


def calibrated(model: Path, folder: Path, sequences: list[list[int]], **options: str) -> Path:
    """A copy of a checkpoint with KV scales from some sequences."""
    shutil.copytree(model, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    with LLM(str(model), dtype="float32", **options) as llm:  # type: ignore[arg-type]
        runner = llm.engine.runner
        scales = calibrate_kv_scales(observe_kv_maxima(runner.model, runner.leaves, sequences))
    tensors = load_file(folder / "model.safetensors") | kv_scale_tensors(scales)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tiny_calibrated(tiny_llama3: Path, tmp_path_factory: pytest.TempPathFactory, compile_cache: str) -> Path:
    folder = tmp_path_factory.mktemp("fp8") / "tiny"
    return calibrated(tiny_llama3, folder, PROMPTS[:4], compile_cache=compile_cache)


def launch(model: Path, compile_cache: str, kv_dtype: str, **changes: object) -> LLM:
    options: EngineOptions = {
        "kv_dtype": kv_dtype,
        "max_sequences": 32,
        "max_batch_tokens": 64,
        "page_size_tokens": 8,
        "max_context_tokens": 256,
        "compile_cache": compile_cache,
        **changes,
    }  # type: ignore[typeddict-item]
    return LLM(str(model), **options)


@pytest.fixture(scope="module", params=KV_DTYPES)
def quantized(request: pytest.FixtureRequest, tiny_calibrated: Path, compile_cache: str) -> Iterator[LLM]:
    with launch(tiny_calibrated, compile_cache, request.param) as llm:
        yield llm


def generate(llm: LLM, wanted: list[int]) -> list[RequestOutput]:
    prompts = [{"prompt_token_ids": PROMPTS[i]} for i in wanted]
    return llm.generate(prompts, [settings(i) for i in wanted], use_tqdm=False)  # type: ignore[arg-type]


def assert_same(llm: LLM, ours: list[RequestOutput], theirs: list[RequestOutput]) -> None:
    tolerance = LOGPROB_TOLERANCE[llm.engine.runner.kv_format.dtype]
    for one, other in zip((o.outputs[0] for o in ours), (o.outputs[0] for o in theirs), strict=True):
        assert one.token_ids == other.token_ids
        logprobs = ([entry.logprob for entry in output.logprobs or ()] for output in (one, other))
        np.testing.assert_allclose(*logprobs, atol=tolerance)
    llm.engine.scheduler.check_integrity()


@pytest.fixture(scope="module")
def alone(quantized: LLM) -> list[RequestOutput]:
    return [generate(quantized, [i])[0] for i in WANTED]


def test_among_neighbours(quantized: LLM, alone: list[RequestOutput]):
    assert_same(quantized, generate(quantized, WANTED), alone)


def test_after_preemption(quantized: LLM, alone: list[RequestOutput], tiny_calibrated: Path, compile_cache: str):
    runner = quantized.engine.runner
    page_bytes = sum(a.nbytes for a in jax.tree.leaves(runner.cache) if a.ndim > 2) // runner.cache.k.shape[1]
    with launch(tiny_calibrated, compile_cache, runner.kv_format.dtype, kv_memory=str(36 * page_bytes)) as llm:
        assert llm.engine.scheduler.pool.num_usable == 35
        outputs = generate(llm, WANTED)
        assert llm.engine.scheduler.num_preemptions > 0
        assert_same(llm, outputs, alone)
        assert llm.engine.scheduler.pool.num_used == 0


def test_the_cache_is_quantized_and_says_so(quantized: LLM, tiny_llm: LLM):
    runner = quantized.engine.runner
    dtype = runner.kv_format.dtype
    assert runner.cache.k.dtype == runner.cache.v.dtype == {"int8": "int8", "fp8_e4m3": "uint8"}[dtype]
    assert f'kv_dtype="{dtype}"'.encode() in quantized.engine.metrics.render()[0]
    assert b'kv_dtype="float32"' in tiny_llm.engine.metrics.render()[0]
    if runner.kv_format.scales is not None:
        np.testing.assert_array_equal(runner.cache.k_scale, runner.kv_format.scales.k)  # after many steps
        assert not (runner.kv_format.scales.k == 1).any()


def test_prompt_scores_and_embeddings(quantized: LLM, tiny_llm: LLM):
    """Near those of a float32 cache, and the same alone and in chunks beside others."""
    dtype = quantized.engine.runner.kv_format.dtype
    prompts = [{"prompt_token_ids": PROMPTS[i]} for i in range(8)]
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)

    def scores(llm: LLM, prompts: list) -> list[list[float]]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [[entry.logprob for entry in output.prompt_logprobs or () if entry] for output in outputs]

    together, exact = scores(quantized, prompts), scores(tiny_llm, prompts)
    single = [scores(quantized, [prompt])[0] for prompt in prompts]
    for ours, theirs, own in zip(together, exact, single, strict=True):
        np.testing.assert_allclose(ours, own, atol=LOGPROB_TOLERANCE[dtype])
        assert not ours or 0 < np.abs(np.subtract(ours, theirs)).max() < 1
    ours, theirs = (llm.embed(prompts, use_tqdm=False) for llm in (quantized, tiny_llm))
    for one, other in zip(ours, theirs, strict=True):
        assert np.dot(one.embedding, other.embedding) > (0.99 if dtype == "int8" else 0.95)


def test_fp8_without_scales_is_refused_before_weights_are_read(tiny_llama3: Path, compile_cache: str):
    with pytest.raises(ConfigError, match="no k_scale and v_scale tensors"):
        launch(tiny_llama3, compile_cache, "fp8_e4m3")
    with launch(tiny_llama3, compile_cache, "fp8_e4m3", kv_scale_unit=True) as llm:
        assert (np.asarray(llm.engine.runner.cache.k_scale) == 1).all()


def test_eight_devices(quantized: LLM, tiny_calibrated: Path, compile_cache: str):
    dtype = quantized.engine.runner.kv_format.dtype
    prompts = [{"prompt_token_ids": PROMPTS[i]} for i in range(3)]
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with launch(tiny_calibrated, compile_cache, dtype, layout="tp", max_sequences=4) as llm:
        scale = llm.engine.runner.cache.k_scale
        assert scale is not None and scale.addressable_shards[0].data.nbytes * 4 == scale.nbytes
        on_eight, on_one = (engine.generate(prompts, greedy, use_tqdm=False) for engine in (llm, quantized))
        assert [o.outputs[0].token_ids for o in on_eight] == [o.outputs[0].token_ids for o in on_one]


def perplexity(llm: LLM, windows: list[list[int]]) -> float:
    """Over every token of the windows but their first."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    outputs = llm.generate([{"prompt_token_ids": w} for w in windows], params, use_tqdm=False)
    scored = [entry.logprob for output in outputs for entry in output.prompt_logprobs or () if entry]
    return math.exp(-sum(scored) / len(scored))


def sampled_stories(llm: LLM, count: int, seed: int) -> list[list[int]]:
    """What the model itself writes from its first token on, up to its context."""
    params = [SamplingParams(temperature=1, max_tokens=500, seed=seed + i, ignore_eos=True) for i in range(count)]
    outputs = llm.generate([{"prompt_token_ids": [1]}] * count, params, use_tqdm=False)
    return [[1, *output.outputs[0].token_ids] for output in outputs]


@pytest.mark.slow
def test_perplexity_of_a_trained_model(
    stories: Path, shared: Path, stories_llm: LLM, compile_cache: str, tmp_path: Path
):
    """Of 4,500 tokens of its own stories and 12,000 of prose it was not made for, against a float32 cache.

    The 3 mantissa bits of float8 are too few for this model's keys (docs/log.md: 4 bits would cost a fifth as much),
    whose heads have 8 numbers: its own stories, where any error costs, show it. Prose is within 0.3%, as int8 is.
    """
    written, calibration = sampled_stories(stories_llm, 9, seed=0), sampled_stories(stories_llm, 8, seed=1000)
    ids = stories_llm.engine.tokenizer.encode((shared / "data" / "sft" / "tinyshakespeare.txt").read_text()[:20_000])
    prose = [[1, *ids[i : i + 500]] for i in range(0, len(ids), 500)]
    exact = [perplexity(stories_llm, windows) for windows in (written, prose)]
    assert exact[0] < 8 < exact[1]
    model = calibrated(stories, tmp_path / "fp8", calibration, compile_cache=compile_cache)
    for kv_dtype in KV_DTYPES:
        with LLM(str(model), dtype="float32", kv_dtype=kv_dtype, compile_cache=compile_cache) as llm:  # type: ignore[arg-type]
            rounded = [perplexity(llm, windows) for windows in (written, prose)]
        assert rounded != exact
        np.testing.assert_allclose(rounded[1], exact[1], rtol=0.003)
        assert 0 < rounded[0] / exact[0] - 1 < MOST_LOST[kv_dtype]
