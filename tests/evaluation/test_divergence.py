"""KL and agreement against a direct computation in float64, and a model against itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from ryzjax.errors import ConfigError, DataError
from ryzjax.evaluation import (
    Divergence,
    EvaluationText,
    OpenModel,
    divergence,
    open_model,
    reference_states,
    sliding_windows,
    text_divergence,
)
from ryzjax.models.abstract import AbstractModel
from ryzjax.sharding import Layout, Placement
from tests.evaluation.logprobs import Oracle
from tests.evaluation.models import ONE, built
from tests.models.configs import CONFIGS

TOKENS = [(i * i + 3 * i) % 64 for i in range(333)]
WINDOWS = {"context_tokens": 100, "stride_tokens": 60}
Built = tuple[AbstractModel, tuple[jax.Array, ...]]


def shaken(model: Built, size: float) -> Built:
    """The model with noise in every weight."""
    rng = np.random.default_rng(1)
    abstract, leaves = model
    noisy = [leaf + size * rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
    return abstract, tuple(jax.device_put(new, old.sharding) for new, old in zip(noisy, leaves, strict=True))


def compare(reference: Built, model: Built, tokens: list[int] = TOKENS) -> Divergence:
    return divergence(reference_states(*reference, tokens, **WINDOWS), *model)


def direct(reference: Built, model: Built, tokens: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL, agreement and the model's negative log-likelihoods of every token but the first, in float64."""
    kl, same, nll = [], [], []
    oracles = [Oracle(*one, max_tokens=WINDOWS["context_tokens"]) for one in (reference, model)]
    for window in sliding_windows(len(tokens), **WINDOWS):
        part = tokens[window.begin : window.end]
        rows = slice(window.first_target - window.begin - 1, None)
        p, q = (oracle.logprobs(part)[rows] for oracle in oracles)
        kl.append((np.exp(p) * (p - q)).sum(axis=-1))
        same.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        nll.append(-q[np.arange(len(q)), tokens[window.first_target : window.end]])
    return np.concatenate(kl), np.concatenate(same), np.concatenate(nll)


@pytest.mark.parametrize("noise", [1e-4, 0.05, 1.0])
def test_against_float64(noise: float) -> None:
    reference = built(CONFIGS["gemma3"])
    model = shaken(reference, noise)
    found = compare(reference, model)
    kl, same, nll = direct(reference, model, TOKENS)
    assert found.tokens == len(kl) == 332
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3, abs=1e-9)
    assert found.kl_standard_error == pytest.approx(kl.std(ddof=1) / np.sqrt(332), rel=1e-3, abs=1e-9)
    assert found.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-3, abs=1e-8)
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-3, abs=1e-8)
    assert found.top1_agreement == pytest.approx(same.mean(), abs=1e-9)
    assert found.top1_low <= found.top1_agreement <= found.top1_high
    assert found.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert found.mean_kl > 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_a_model_and_itself(name: str) -> None:
    model = built(CONFIGS[name])
    found = compare(model, model)
    assert (found.mean_kl, found.kl_max, found.kl_standard_error) == (0.0, 0.0, 0.0)
    assert (found.top1_agreement, found.top1_high) == (1.0, 1.0)
    assert found.perplexity == found.reference_perplexity
    assert found.tokens_sha256 == hashlib.sha256(np.array(TOKENS, "<i4").tobytes()).hexdigest()


def test_only_the_head_of_the_reference_stays() -> None:
    model, leaves = built(CONFIGS["qwen3"])
    alive = {name: weakref.ref(leaf) for name, leaf in zip(model.weights, leaves, strict=True)}
    states = reference_states(model, leaves, TOKENS, **WINDOWS)
    del leaves
    assert {name for name, leaf in alive.items() if leaf() is not None} == {"final_norm.weight", "lm_head.weight"}
    assert states.hidden.shape == (332, 32) and isinstance(states.hidden, np.ndarray)


def test_models_on_different_devices() -> None:
    config = dataclasses.replace(CONFIGS["llama"], num_heads=8, num_kv_heads=8)
    one, eight = built(config, ONE), built(config, Placement(Layout.load("tp")))
    for found in (compare(one, eight), compare(eight, one)):
        assert 0 <= found.mean_kl < 1e-8 and found.top1_agreement > 0.99
        assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-5)


def test_the_order_matters() -> None:
    reference = built(CONFIGS["llama"])
    model = shaken(reference, 0.3)
    there, back = compare(reference, model), compare(model, reference)
    assert there.reference_perplexity == pytest.approx(back.perplexity, rel=1e-6)
    assert abs(there.mean_kl - back.mean_kl) > 1e-3 * there.mean_kl


def test_other_vocabularies_and_short_texts() -> None:
    reference = built(CONFIGS["llama"])
    other = built(dataclasses.replace(CONFIGS["llama"], vocab_size=65))
    with pytest.raises(ConfigError, match="vocab_size=65 and the reference 64"):
        compare(reference, other)
    with pytest.raises(DataError, match="the text has 1 token"):
        compare(reference, reference, [5])
    short = built(dataclasses.replace(CONFIGS["llama"], max_position=64))
    with pytest.raises(ConfigError, match="max_tokens=100 is out of range; expected 1 to 64"):
        compare(reference, short)


def test_a_text(stories: Path, shared: Path) -> None:
    raw = (shared / "data" / "sft" / "tinyshakespeare.txt").read_bytes()[:3000]
    text = EvaluationText.of(raw.decode())
    exact, rounded = open_model(str(stories), dtype="float32"), open_model(str(stories), dtype="bfloat16")
    found = text_divergence(exact, rounded, text)
    again = text_divergence(exact, exact, text, context_tokens=512, stride_tokens=256)
    assert (found.context_tokens, found.stride_tokens) == (512, 256)
    assert again.mean_kl == 0.0 and 1e-5 < found.mean_kl < 1e-2
    assert 0.9 < found.top1_agreement < 1.0
    assert found.reference_perplexity == again.perplexity


def test_texts_that_models_read_differently(tiny: OpenModel, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny.source.path, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="tokenize text differently"):
        text_divergence(tiny, open_model(str(folder)), EvaluationText.of("abc"))
    with pytest.raises(ConfigError, match="context_tokens=1000 is more than the 512 tokens both models have"):
        text_divergence(tiny, tiny, EvaluationText.of("abc"), context_tokens=1000)
