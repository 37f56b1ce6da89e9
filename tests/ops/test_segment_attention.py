"""segment_attention and its gradient against one softmax over all scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.attention_settings import AttentionSettings
from ryzjax.ops.attention.segment_attention import (
    segment_attention,
    segment_attention_by_xla,
    segment_attention_reference,
)

either = pytest.mark.parametrize("attention", [segment_attention, segment_attention_by_xla], ids=["chosen", "xla"])

CASES = {
    "one block": dict(length=50),
    "blocks": dict(length=300),
    "window": dict(length=600, window=100),
    "soft cap and sinks": dict(length=300, softcap=5.0, sinks=True),
    "one head a key": dict(length=140, heads=4, window=40, sinks=True),
}


def packed(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the segments and positions of rows that are filled to nine tenths."""
    segments, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        start, number = 0, 1
        while start < length * 9 // 10:
            size = min(int(rng.integers(1, length)), length * 9 // 10 - start)
            segments[row, start : start + size] = number
            positions[row, start : start + size] = np.arange(size)
            start, number = start + size, number + 1
    return segments, positions


@either
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_the_reference(attention, case: dict) -> None:
    rng = np.random.default_rng(0)
    options = {"heads": 2, "window": None, "softcap": None, "sinks": False} | case
    length, kv_heads, dim = options["length"], options["heads"], 8
    segments, positions = map(jnp.asarray, packed(rng, 2, length))

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, k, v = draw(2, length, 4, dim), draw(2, length, kv_heads, dim), draw(2, length, kv_heads, dim)
    sinks = draw(4) if options["sinks"] else None
    real = jnp.asarray(segments > 0, jnp.float32)[:, :, None, None]
    towards = draw(2, length, 4, dim) * real

    def loss(attention, q, k, v, sinks):
        settings = AttentionSettings(scale=0.4, window=options["window"], softcap=options["softcap"])
        out = attention(q, k, v, segments, positions, sinks, settings=settings)
        return jnp.sum(out * towards), out

    wanted = (0, 1, 2, 3) if sinks is not None else (0, 1, 2)

    @jax.jit
    def run(q, k, v, sinks):
        return [
            jax.value_and_grad(lambda *args, f=f: loss(f, *args), argnums=wanted, has_aux=True)(q, k, v, sinks)
            for f in (attention, segment_attention_reference)
        ]

    ((_, ours), ours_grads), ((_, theirs), their_grads) = run(q, k, v, sinks)
    np.testing.assert_allclose(ours * real, theirs * real, atol=2e-6)
    for mine, other in zip(ours_grads, their_grads, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


@either
def test_padding_is_zero_and_gives_no_gradient(attention) -> None:
    q = jnp.ones((1, 6, 1, 4))
    segments = jnp.asarray([[1, 1, 1, 0, 0, 0]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 0, 0, 0]], jnp.int32)

    def total(q: jax.Array) -> jax.Array:
        return jnp.sum(
            attention(q, q, q, segments, positions, settings=AttentionSettings(scale=1.0, window=None, softcap=None))
            ** 2
        )

    out = attention(q, q, q, segments, positions, settings=AttentionSettings(scale=1.0, window=None, softcap=None))
    assert not np.any(out[0, 3:]) and np.all(np.isfinite(out))
    assert not np.any(jax.grad(total)(q)[0, 3:])


@either
def test_by_hand(attention) -> None:
    """There are two tokens with one feature. The second attends to both with the weights softmax([0, 1])."""
    q = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1, 1)
    k = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1, 1)
    v = jnp.asarray([3.0, 5.0]).reshape(1, 2, 1, 1)
    out = attention(
        q,
        k,
        v,
        jnp.ones((1, 2), jnp.int32),
        jnp.asarray([[0, 1]], jnp.int32),
        settings=AttentionSettings(scale=1.0, window=None, softcap=None),
    )
    share = np.e / (1 + np.e)
    np.testing.assert_allclose(out[0, :, 0, 0], [3.0, 3.0 * (1 - share) + 5.0 * share], rtol=1e-6)
