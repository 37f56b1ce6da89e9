"""Initial LoRA updates: how they change the model, and how well they approximate their target."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.lora import Adapter, LoraConfig, LoraWeights, delta, difference, initial_weights, merged
from ryzjax.lora.config import LoraInit
from ryzjax.lora.init import largest_factors
from ryzjax.qarray import QArray, dequantize
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.scheme import Scheme

pytestmark = pytest.mark.optimized

N, K = 48, 64
KEY = jax.random.key(3)
FORMAT = Scheme(bits=4, group=32).format(K, "bfloat16")


def a_weight(n: int = N, k: int = K, seed: int = 0) -> jax.Array:
    """Returns a matrix whose singular values fall, as those of weights do."""
    rng = np.random.default_rng(seed)
    u, v = np.linalg.qr(rng.standard_normal((n, n)))[0], np.linalg.qr(rng.standard_normal((k, k)))[0]
    size = min(n, k)
    return jnp.asarray((u[:, :size] * (1.0 / np.sqrt(1 + np.arange(size)))) @ v[:size], jnp.float32)


def int4(w: jax.Array) -> QArray:
    return quantize_matrix("w", w, FORMAT)


def float_of(base: jax.Array | QArray) -> jax.Array:
    return dequantize(base) if isinstance(base, QArray) else base


@pytest.mark.parametrize("init", ["default", "gaussian"])
def test_random_beginnings_change_nothing(init: LoraInit):
    config = LoraConfig(rank=16, init=init)
    update, base = initial_weights(config, "q", jax.ShapeDtypeStruct((N, K), jnp.float32), KEY)
    assert base is None and not np.any(update.b) and update.magnitude is None
    a = np.asarray(update.a)
    if init == "default":
        assert np.abs(a).max() <= 1 / np.sqrt(K) and np.abs(a.std() * np.sqrt(3 * K) - 1) < 0.05
    else:
        assert np.abs(a.std() * 16 - 1) < 0.05


def test_a_beginning_depends_on_key_and_layer_alone():
    config, shape = LoraConfig(rank=4), jax.ShapeDtypeStruct((N, K), jnp.float32)
    first = initial_weights(config, "layers.0.q", shape, KEY).update.a
    np.testing.assert_array_equal(initial_weights(config, "layers.0.q", shape, KEY).update.a, first)
    assert not np.array_equal(initial_weights(config, "layers.1.q", shape, KEY).update.a, first)
    assert not np.array_equal(initial_weights(config, "layers.0.q", shape, jax.random.key(4)).update.a, first)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_gives_the_weight_back_and_takes_its_largest_part(use_rslora: bool):
    w = a_weight()
    config = LoraConfig(rank=6, alpha=9.0, init="pissa", use_rslora=use_rslora)
    update, base = initial_weights(config, "q", w, KEY)
    assert isinstance(base, jax.Array) and base.dtype == w.dtype
    part = delta(update, config.scale_of("q"))
    np.testing.assert_allclose(base + part, w, atol=1e-6)
    values = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(np.asarray(base), compute_uv=False)[0], values[6], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(part), np.sqrt((values[:6] ** 2).sum()), rtol=1e-5)


def test_pissa_of_a_quantized_base_loses_less_than_quantizing():
    w = a_weight()
    config = LoraConfig(rank=12, alpha=12.0, init="pissa")
    update, base = initial_weights(config, "q", w, KEY, int4)
    assert isinstance(base, QArray)
    lost = np.linalg.norm(w - dequantize(base) - delta(update, 1.0))
    assert lost < 0.9 * np.linalg.norm(w - dequantize(int4(w)))


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_loftq_loses_less_than_quantizing(rank: int):
    w = a_weight()
    config = LoraConfig(rank=rank, alpha=2.0 * rank, init="loftq")
    update, base = initial_weights(config, "q", w, KEY, int4)
    assert isinstance(base, QArray) and base.format == FORMAT
    plain = w - dequantize(int4(w))
    # One SVD of the quantization error already reaches this bound. Further rounds may only improve on it.
    bound = np.sqrt((np.linalg.svd(np.asarray(plain), compute_uv=False)[rank:] ** 2).sum())
    assert np.linalg.norm(w - dequantize(base) - delta(update, 2.0)) <= bound * 1.0001 < np.linalg.norm(plain)


@pytest.mark.parametrize("init", ["default", "pissa", "loftq"])
def test_dora_begins_as_the_base(init: LoraInit):
    w = a_weight()
    config = LoraConfig(rank=4, init=init, use_dora=True)
    update, base = initial_weights(config, "q", w, KEY, int4 if init == "loftq" else None)
    now = w if base is None else float_of(base)
    wanted = now + delta(update, config.scale_of("q"))
    np.testing.assert_allclose(merged(now, update, config.scale_of("q")), wanted, atol=1e-6)
    if init != "loftq":
        np.testing.assert_allclose(wanted, w, atol=1e-6)


@pytest.mark.parametrize("shape", [(1100, 1300), (1300, 1100)])
def test_large_matrices_by_the_randomized_method(shape: tuple[int, int]):
    """The error is within 1% of the best possible one, on a spectrum that falls as slowly as that of weights."""
    n, k = shape
    rng = np.random.default_rng(0)
    # A sum of random rank-one matrices of falling size is cheaper to make than an exact spectrum.
    u, v = rng.standard_normal((n, 200)), rng.standard_normal((200, k))
    w = jnp.asarray((u / np.sqrt(1 + np.arange(200))) @ v + rng.standard_normal(shape), jnp.float32)
    update = largest_factors(w, 8, 2.0, KEY)
    exact = np.asarray(w, np.float64)
    values = np.sqrt(np.linalg.eigvalsh(exact @ exact.T if n < k else exact.T @ exact)[::-1])
    best = np.sqrt((values[8:] ** 2).sum())
    assert np.linalg.norm(w - delta(update, 2.0)) < 1.001 * best
    b, a = np.linalg.qr(np.asarray(update.b), mode="r"), np.linalg.qr(np.asarray(update.a).T, mode="r")
    captured = np.linalg.svd(b @ a.T, compute_uv=False) * 2.0
    np.testing.assert_allclose(captured, values[:8], rtol=1e-2)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_difference_to_its_beginning_adapts_the_unchanged_base(use_rslora: bool):
    config = LoraConfig(
        rank=4, alpha=6.0, init="pissa", use_rslora=use_rslora, rank_pattern={"k": 2}, alpha_pattern={"k": 5.0}
    )
    ws = {"q": a_weight(), "k": a_weight(seed=1)}
    begun = {layer: initial_weights(config, layer, w, KEY) for layer, w in ws.items()}
    initial = Adapter(config=config, weights={layer: b.update for layer, b in begun.items()})
    rng = np.random.default_rng(0)
    trained = {
        layer: LoraWeights(a=u.a + rng.standard_normal(u.a.shape), b=u.b + rng.standard_normal(u.b.shape))
        for layer, u in initial.weights.items()
    }
    adapter = replace(initial, weights=trained)
    found = difference(adapter, initial)
    assert found.config.init == "default" and found.config.rank_of("q") == 8 and found.config.rank_of("k") == 4
    for layer, w in ws.items():
        base = begun[layer].base
        assert isinstance(base, jax.Array)
        wanted = merged(base, trained[layer], config.scale_of(layer))
        np.testing.assert_allclose(merged(w, found.weights[layer], found.config.scale_of(layer)), wanted, atol=2e-4)


def test_differences_of_what_does_not_belong_together():
    config = LoraConfig(rank=2)
    one = Adapter(config=config, weights={"q": LoraWeights(a=jnp.ones((2, K)), b=jnp.ones((N, 2)))})
    other = replace(one, weights={"k": one.weights["q"]})
    with pytest.raises(ConfigError, match="differ in 'q'"):
        difference(one, other)
    with pytest.raises(ConfigError, match="scale 'q' differently"):
        difference(one, replace(one, config=replace(config, alpha=3.0)))
    with pytest.raises(ConfigError, match="not a DoRA"):
        difference(replace(one, config=replace(config, use_dora=True)), one)


def test_bad_input():
    w = a_weight()
    pissa, loftq = LoraConfig(rank=4, init="pissa"), LoraConfig(rank=4, init="loftq")
    with pytest.raises(ConfigError, match=r"q is quantized, and what PiSSA leaves.*init='default'"):
        initial_weights(pissa, "q", int4(w), KEY)
    with pytest.raises(ConfigError, match="quantized already"):
        initial_weights(loftq, "q", int4(w), KEY, int4)
    with pytest.raises(ConfigError, match="is not to be quantized"):
        initial_weights(loftq, "q", w, KEY)
    with pytest.raises(ConfigError, match="rank 64 of q is more than its 48 x 64"):
        initial_weights(replace(pissa, rank=64), "q", w, KEY)
