"""Calibration of fp8 KV scales: the maxima in a model's cache, and the resulting scales."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.quantizing import kv_calibration
from ryzjax.quantizing.kv_calibration import KVMaxima, calibrate_kv_scales, observe_kv_maxima
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import empty_cache, one_row

ONE = Placement(Layout.load("single"), jax.devices()[:1])
# The longest sequence comes last. Its values must not count for the others, and theirs must not be lost.
SEQUENCES = [[(7 * i + j) % 64 for i in range(length)] for j, length in enumerate((5, 100, 1, 66, 120))]


def small_model(placement: Placement, **changes: object) -> tuple[AbstractModel, tuple[jax.Array, ...]]:
    model = abstract_model(dataclasses.replace(CONFIGS["llama"], max_position=128, **changes), placement)
    weights = dummy_weights(model.weights, 0)
    return model, tuple(weights.values())


def maxima_by_hand(model: AbstractModel, leaves: tuple[jax.Array, ...]) -> KVMaxima:
    """Returns the maxima after running each sequence in one chunk with its own cache, which it fills from page 1 on."""
    peaks = []
    for tokens in SEQUENCES:
        pages = -(-len(tokens) // 8)
        batch = one_row(tokens, 0, pages=pages, rope_length=len(tokens))

        @partial(jax.jit, static_argnums=3)
        def run(leaves, cache, batch, longest):
            return model.merge(leaves).forward(batch, cache, max_query_len=longest)[1]

        cache = run(leaves, empty_cache(model, pages), batch, max(2, len(tokens)))
        numbers = [np.asarray(part) for part in (cache.k, cache.v)]
        if numbers[0].dtype == np.uint16:
            numbers = [part.view(ml_dtypes.bfloat16) for part in numbers]
        peaks.append([np.abs(part[:, 1:].astype(np.float32)).max(axis=(1, 3, 4)) for part in numbers])
    return KVMaxima(*(np.max([peak[i] for peak in peaks], axis=0) for i in range(2)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [512, 32])
def test_maxima_are_those_of_the_cache(dtype: str, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_calibration, "_CHUNK_TOKENS", chunk)
    model, leaves = small_model(ONE, dtype=dtype)
    done: list[None] = []
    seen = observe_kv_maxima(model, leaves, SEQUENCES, on_done=lambda: done.append(None))
    expected = maxima_by_hand(model, leaves)
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.shape == (model.config.num_layers, model.config.num_kv_heads) and ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5 if dtype == "float32" else 2**-7)
    assert len(done) == len(SEQUENCES)
    assert len(np.unique(seen.k)) == seen.k.size  # every head has its own


def test_maxima_of_a_model_on_eight_devices():
    ours, theirs = (
        observe_kv_maxima(*small_model(placement), SEQUENCES) for placement in (Placement(Layout.load("tp_dp")), ONE)
    )
    np.testing.assert_allclose(ours.k, theirs.k, rtol=1e-5)
    np.testing.assert_allclose(ours.v, theirs.v, rtol=1e-5)


def test_the_largest_number_becomes_the_largest_float8():
    scales = calibrate_kv_scales(KVMaxima(k=np.float32([[448, 4.48], [0, 896]]), v=np.float32([[1, 2], [3, 4]])))
    np.testing.assert_allclose(scales.k, [[1, 0.01], [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(scales.v * 448, [[1, 2], [3, 4]], rtol=1e-6)
    assert scales.k.dtype == scales.v.dtype == np.float32


def test_maxima_that_are_not_finite_are_refused():
    bad = np.float32([[1, 2], [np.nan, 3]])
    with pytest.raises(ConfigError, match="the largest v of layer 1, KV head 0 is nan"):
        calibrate_kv_scales(KVMaxima(k=np.ones_like(bad), v=bad))


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences to calibrate"),
        ([[1], []], "calibration sequence 1 has 0 tokens; expected 1 to 128"),
        ([[1] * 129], "calibration sequence 0 has 129 tokens"),
        ([[1, 64]], "calibration sequence 0 has tokens 1 to 64; expected 0 to 63"),
        ([[-1]], "has tokens -1 to -1"),
    ],
)
def test_invalid_sequences_are_refused(sequences: list[list[int]], message: str):
    with pytest.raises(ConfigError, match=message):
        observe_kv_maxima(*small_model(ONE), sequences)
