"""The arrays of a KV cache by dtype: shapes, shardings, bytes, and what a model makes of them on eight devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ryzjax.errors import ConfigError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVFormat, KVScales, empty_kv_cache, kv_cache_shapes, kv_page_bytes
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.models.configs import CONFIGS
from tests.models.paged import sequence_logits

TOKENS = [(7 * i) % 64 for i in range(26)]
ONE = Placement(Layout.load("single"), jax.devices()[:1])


def scales_of(config: ModelConfig) -> KVScales:
    """Different for every layer and head, and for keys and values."""
    shape = config.num_layers, config.num_kv_heads
    k = np.linspace(0.012, 0.04, config.num_layers * config.num_kv_heads, dtype=np.float32).reshape(shape)
    return KVScales(k=k, v=k[::-1].copy())


def kv_format(config: ModelConfig, dtype: str) -> KVFormat:
    return KVFormat(dtype=dtype, scales=scales_of(config) if dtype == "fp8_e4m3" else None)  # type: ignore[arg-type]


def logits(config: ModelConfig, placement: Placement, dtype: str) -> np.ndarray:
    model = abstract_model(config, placement)
    weights = dummy_weights(model.weights, 0)
    leaves = tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
    return sequence_logits(model, leaves, TOKENS, prompt_len=20, chunk=12, kv_format=kv_format(config, dtype))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("dtype", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("layout", ["tp", pytest.param("tp_dp", marks=pytest.mark.slow)])
def test_a_quantized_cache_on_eight_devices_gives_the_logits_of_one(name: str, dtype: str, layout: str):
    config = CONFIGS[name]
    on_one, on_eight = (logits(config, placement, dtype) for placement in (ONE, Placement(Layout.load(layout))))
    # Sums over devices round otherwise, and now and then a number of a key or value to its other neighbour: a step of
    # fp8 is up to a 16th of the number.
    np.testing.assert_allclose(on_eight, on_one, atol=0.02 * on_one.std())
    assert np.median(np.abs(on_eight - on_one)) < 1e-4 * on_one.std()


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.02), ("fp8_e4m3", 0.1)])
def test_rounding_shows_in_the_logits_but_little(dtype: str, most: float):
    exact, rounded = logits(CONFIGS["llama"], ONE, "float32"), logits(CONFIGS["llama"], ONE, dtype)
    error = np.sqrt(np.mean((rounded - exact) ** 2)) / exact.std()
    assert 1e-4 < error < most


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["int8", "fp8_e4m3"])
def test_quantized_pages_save_40_to_50_percent_of_bfloat16(dtype: str, head_dim: int):
    config = dataclasses.replace(CONFIGS["llama"], head_dim=head_dim, dtype="bfloat16")
    plain, quantized = (kv_page_bytes(config, ONE, d, 64) for d in ("bfloat16", dtype))  # type: ignore[arg-type]
    assert 0.4 <= 1 - quantized / plain <= 0.5


def test_arrays_and_their_shardings():
    config = dataclasses.replace(CONFIGS["llama"], num_heads=8, num_kv_heads=4)
    placement = Placement(Layout(name="own", mesh={"x": 2}, rules={"heads": "x", "kv_heads": "x"}), jax.devices()[:2])
    tokens = (config.num_layers, 5, 4, 8)
    cases = {
        "float32": ("float32", None, None),
        "bfloat16": ("uint16", None, None),
        "int8": ("int8", tokens, P(None, None, "x", None)),
        "fp8_e4m3": ("uint8", (config.num_layers, 4), P(None, "x")),
    }
    for dtype, (stored, scale_shape, scale_spec) in cases.items():
        size = {"num_pages": 5, "page_size_tokens": 8}
        shapes = kv_cache_shapes(config, placement, dtype, **size)  # type: ignore[arg-type]
        cache = empty_kv_cache(config, placement, kv_format(config, dtype), **size)
        assert jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), cache) == jax.tree.map(
            lambda a: (a.shape, a.dtype, a.sharding), shapes
        )
        assert cache.k.shape == cache.v.shape == (*tokens, config.head_dim) and cache.v.dtype == stored
        assert cache.k.sharding.spec == P(None, None, "x", None, None)
        assert cache.k.addressable_shards[0].data.nbytes * 2 == cache.k.nbytes
        for scale in (cache.k_scale, cache.v_scale):
            assert (None if scale is None else scale.shape) == scale_shape
            assert scale is None or scale.sharding.spec == scale_spec
        if dtype == "fp8_e4m3":
            np.testing.assert_array_equal(cache.v_scale, scales_of(config).v)
            assert cache.k_scale is not None and cache.k_scale.dtype == jnp.float32


def test_scales_that_do_not_belong():
    with pytest.raises(ConfigError, match="a KV cache of fp8_e4m3 without calibrated scales"):
        KVFormat(dtype="fp8_e4m3")
    with pytest.raises(ConfigError, match="a KV cache of int8 with calibrated scales"):
        KVFormat(dtype="int8", scales=scales_of(CONFIGS["llama"]))
    other = KVScales(k=np.ones((9, 9), np.float32), v=np.ones((9, 9), np.float32))
    with pytest.raises(ConfigError, match=r"KV scales k have shape \[9, 9\]; expected \["):
        empty_kv_cache(CONFIGS["llama"], ONE, KVFormat(dtype="fp8_e4m3", scales=other), num_pages=2, page_size_tokens=8)
