"""The attention layer, within segments and over pages, on one device and on two, against a loop over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.batch import KVCache, SegmentBatch
from ryzjax.layers.attention import Attention, QKNorm
from ryzjax.layers.rope import Rope
from ryzjax.layers.weight import Weight
from ryzjax.sharding import Placement
from tests.layers.filled import ONE, TWO, compiled, filled, normal
from tests.ops.test_paged_attention import make_batch

E, N, H, D = 16, 4, 2, 8
TOKENS = 6
ROPE = Rope(theta=16.0, rotary_dim=D)


def attention(
    placement: Placement, *, qk_norm: QKNorm | None = None, window: int | None = None, softcap: float | None = None
) -> Attention:
    return filled(
        Attention(
            hidden_size=E,
            num_heads=N,
            num_kv_heads=H,
            head_dim=D,
            rope=ROPE,
            scale=D**-0.5,
            dtype="float32",
            placement=placement,
            qkv_bias=True,
            out_bias=True,
            window=window,
            softcap=softcap,
            sinks=True,
            qk_norm=qk_norm,
            norm_eps=1e-5,
        )
    )


def numbers(weight: object) -> np.ndarray:
    assert isinstance(weight, Weight)
    return np.asarray(weight[...], np.float64)


def by_hand(layer: Attention, x: jax.Array) -> np.ndarray:
    """Returns the output of one sequence in float64, computed one query and head at a time."""

    def heads(name: str) -> np.ndarray:
        linear = getattr(layer, name)
        y = np.asarray(x, np.float64) @ numbers(linear.weight).T + numbers(linear.bias)
        if layer.qk_norm is None or name == "v":
            return y.reshape(TOKENS, -1, D)
        y = y.reshape(TOKENS, -1, D) if layer.qk_norm == "head" else y
        norm = getattr(layer, f"{name}_norm")
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * numbers(norm.weight)
        return y.reshape(TOKENS, -1, D)

    def rotate(y: np.ndarray) -> np.ndarray:
        angle = np.arange(TOKENS)[:, None, None] * 16 ** (-np.arange(D // 2) / (D // 2))
        turned = (y[..., : D // 2] + 1j * y[..., D // 2 :]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    q, k, v = rotate(heads("q")), rotate(heads("k")), heads("v")
    settings, sinks = layer.settings, numbers(layer.sinks)
    out = np.zeros((TOKENS, N, D))
    for t in range(TOKENS):
        first = 0 if settings.window is None else max(0, t + 1 - settings.window)
        for n in range(N):
            scores = k[first : t + 1, n // (N // H)] @ q[t, n] * settings.scale
            if settings.softcap is not None:
                scores = settings.softcap * np.tanh(scores / settings.softcap)
            weights = np.exp(scores)
            out[t, n] = weights @ v[first : t + 1, n // (N // H)] / (weights.sum() + np.exp(sinks[n]))
    return out.reshape(TOKENS, N * D) @ numbers(layer.o.weight).T + numbers(layer.o.bias)


CASES = pytest.mark.parametrize(
    ("qk_norm", "window", "softcap"), [(None, None, None), ("head", 3, None), ("projection", None, 2.0)]
)
PLACES = pytest.mark.parametrize("placement", [ONE, TWO], ids=["one", "two"])


def check(got: jax.Array, want: np.ndarray) -> None:
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@CASES
@PLACES
def test_within_segments(placement: Placement, qk_norm: QKNorm | None, window: int | None, softcap: float | None):
    layer = attention(placement, qk_norm=qk_norm, window=window, softcap=softcap)
    x = normal((2, TOKENS, E))
    positions = jnp.tile(jnp.arange(TOKENS), (2, 1))
    batch = SegmentBatch(positions, positions, jnp.ones_like(positions))
    table = ROPE.cos_sin(positions.reshape(-1), positions.reshape(-1))

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        out, cache = layer(x, table, None, jnp.int32(0), batch, max_query_len=TOKENS)
        assert cache is None
        return out

    out = run(x.reshape(2 * TOKENS, E)).reshape(2, TOKENS, E)
    for row in range(2):
        check(out[row], by_hand(layer, x[row]))


@CASES
@PLACES
def test_over_pages_in_two_steps(
    placement: Placement, qk_norm: QKNorm | None, window: int | None, softcap: float | None
):
    layer = attention(placement, qk_norm=qk_norm, window=window, softcap=softcap)
    x = normal((TOKENS, E))
    cache = KVCache(*(jnp.zeros((3, 5, H, 4, D)) for _ in "kv"))

    @jax.jit
    def run(x: jax.Array, cache: KVCache, batch) -> tuple[jax.Array, KVCache | None]:
        table = ROPE.cos_sin(batch.positions, batch.positions)
        return layer(x, table, cache, jnp.int32(1), batch, max_query_len=TOKENS)

    outputs = []
    for first, last in ((0, TOKENS - 1), (TOKENS - 1, TOKENS)):
        batch = make_batch([(first, last - first)], tokens=last - first, max_rows=1, page_size=4, pages=4)
        out, written = run(x[first:last], cache, batch)
        assert written is not None
        outputs.append(out)
        cache = written
    check(jnp.concatenate(outputs), by_hand(layer, x))
    assert cache.k.sharding.shard_shape(cache.k.shape)[2] == H // placement.num_devices
    assert not cache.k[0].any() and not cache.k[2].any()  # only layer 1 was written to


def test_two_devices_reduce_once_and_gather_nothing():
    layer = attention(TWO)
    positions = jnp.arange(TOKENS)[None]
    batch = SegmentBatch(positions, positions, jnp.ones_like(positions))
    table = ROPE.cos_sin(positions[0], positions[0])

    def run(layer: Attention, x: jax.Array) -> jax.Array:
        out, _ = layer(x, table, None, jnp.int32(0), batch, max_query_len=TOKENS)
        return TWO.constrain(out, "tokens", None)

    x = normal((TOKENS, E))
    done = compiled(layer, TWO, run, x)
    assert done.text.count(" all-reduce(") == 1 and " all-gather(" not in done.text
    check(done.run(x), by_hand(layer, x))
