"""The native kernels of attention within segments through XLA: against the reference, under JAX's transformations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ryzjax.attention_settings import AttentionSettings
from ryzjax.native.library import native_refusal
from ryzjax.native.segment_attention import (
    native_segment_attention_refusal,
    native_segment_backward,
    native_segment_forward,
)
from ryzjax.ops.attention.segment_attention import segment_attention, segment_attention_reference
from ryzjax.sharding import Layout, Placement

pytestmark = [
    pytest.mark.optimized,
    pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}"),
]

# Largest error as part of the largest number. bfloat16: a step of rounding; `out` is rounded before gradients take it.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
HEADS = ((2, 2), (4, 2), (7, 1))
ROWS = ([61, 1, 20], [110], [], [5, 64, 30])  # lengths of sequences; the rest is padding
LENGTH = 110
PLAIN = {"settings": AttentionSettings(scale=0.3, window=None, softcap=None)}


def packed(rows: Sequence[list[int]] = ROWS, length: int = LENGTH) -> tuple[jax.Array, jax.Array]:
    """(segment ids, positions)."""
    segments, positions = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        ends = np.cumsum([0, *lengths])
        for i, (start, end) in enumerate(pairwise(ends)):
            segments[row, start:end], positions[row, start:end] = i + 1, np.arange(end - start)
    return jnp.asarray(segments), jnp.asarray(positions)


def draw(seed: int, rows: int, length: int, heads: int, kv_heads: int, dim: int, dtype: str) -> list[jax.Array]:
    """q, k, v and a cotangent."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((rows, length, n, dim)), dtype) for n in (heads, kv_heads, kv_heads, heads)]


def with_gradients(attention, q, k, v, towards, sinks, segments, positions, **options) -> tuple[jax.Array, ...]:
    def of(q, k, v, sinks):
        return attention(q, k, v, segments, positions, sinks, **options)

    out, pull = jax.vjp(of, q, k, v, sinks)
    q_grad, k_grad, v_grad, sinks_grad = pull(towards.astype(out.dtype))
    return (out, q_grad, k_grad, v_grad) if sinks is None else (out, q_grad, k_grad, v_grad, sinks_grad)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
def test_against_the_reference(dim: int, dtype: str):
    segments, positions = packed()
    ours = partial(with_gradients, segment_attention)
    theirs = partial(with_gradients, segment_attention_reference)
    # Each pair of options has met both ways; the groupings turn from one dim to the next.
    choices = ((None, None, True), (37, None, False), (None, 4.0, False), (37, 4.0, True))
    for case, (window, softcap, has_sinks) in enumerate(choices):
        heads, kv_heads = HEADS[(case + dim // 16) % len(HEADS)]
        q, k, v, towards = draw(case, len(ROWS), LENGTH, heads, kv_heads, dim, dtype)
        sinks = jnp.linspace(-1.0, 1.0, heads) if has_sinks else None
        options = {"settings": AttentionSettings(scale=dim**-0.5, window=window, softcap=softcap)}
        got = jax.jit(partial(ours, **options))(q, k, v, towards, sinks, segments, positions)
        q, k, v, towards = (x.astype(jnp.float32) for x in (q, k, v, towards))
        want = jax.jit(partial(theirs, **options))(q, k, v, towards, sinks, segments, positions)
        assert [x.dtype for x in got[:4]] == [jnp.dtype(dtype)] * 4
        for name, mine, other in zip(("out", "q", "k", "v", "sinks"), got, want, strict=False):
            error = float(jnp.abs(mine.astype(jnp.float32) - other).max() / jnp.abs(other).max())
            # A sink's gradient is one sum over all tokens, most of which cancels.
            assert error < TOLERANCE[dtype] * (3 if name == "sinks" else 1), (
                name,
                error,
                heads,
                kv_heads,
                options,
                has_sinks,
            )


def test_the_compiled_step_calls_them_and_holds_no_scores():
    segments, positions = packed([[700, 300]], 1024)
    q, k, v, towards = draw(0, 1, 1024, 16, 16, 16, "float32")
    step = partial(with_gradients, segment_attention, **PLAIN)
    lowered = jax.jit(step).lower(q, k, v, towards, None, segments, positions)
    text = lowered.as_text()
    assert "ryzjax_segment_forward" in text and "ryzjax_segment_backward" in text and "while" not in text
    memory = lowered.compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 2 * q.nbytes


@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (32, 16)])  # with and without sums in parts
def test_results_are_the_same_bits_each_time(heads: int, kv_heads: int):
    segments, positions = packed()
    inputs = draw(3, len(ROWS), LENGTH, heads, kv_heads, 32, "bfloat16")
    step = jax.jit(partial(with_gradients, segment_attention, **PLAIN))
    first = step(*inputs, None, segments, positions)
    for _ in range(5):
        for one, other in zip(first, step(*inputs, None, segments, positions), strict=True):
            np.testing.assert_array_equal(one.view(jnp.uint16), other.view(jnp.uint16))


def test_a_sequence_is_given_the_same_bits_whatever_it_is_packed_with():
    q, k, v, towards = draw(4, 1, 100, 4, 2, 32, "float32")
    step = jax.jit(partial(with_gradients, segment_attention, **PLAIN))
    among = step(q, k, v, towards, None, *packed([[33, 50, 17]], 100))
    alone = step(*(x[:, 33:83] for x in (q, k, v, towards)), None, *packed([[50]], 50))
    for one, other in zip(among, alone, strict=True):
        np.testing.assert_array_equal(one[:, 33:83], other)


def test_in_a_scan_with_checkpoints_and_under_vmap():
    segments, positions = packed()
    q, k, v, towards = draw(5, len(ROWS), LENGTH, 4, 2, 16, "float32")

    def layers(attention, q: jax.Array) -> jax.Array:
        def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return attention(
                x, k, v, segments, positions, settings=AttentionSettings(scale=0.3, window=None, softcap=None)
            ), None

        return (jax.lax.scan(jax.checkpoint(layer), q, None, length=3)[0] * towards).sum()

    got, want = (jax.jit(jax.grad(partial(layers, f)))(q) for f in (segment_attention, segment_attention_reference))
    np.testing.assert_allclose(got, want, atol=1e-6)

    def one(q: jax.Array) -> jax.Array:
        return segment_attention(
            q, k, v, segments, positions, settings=AttentionSettings(scale=0.3, window=None, softcap=None)
        )

    both = jnp.stack([q, q[::-1]])
    np.testing.assert_array_equal(jax.vmap(one)(both), jnp.stack([one(x) for x in both]))


def test_on_each_device_of_a_mesh():
    placement = Placement(Layout.load("tp"))
    axis = tuple(placement.mesh.axis_names)
    devices = placement.mesh.size
    segments, positions = packed()
    q, k, v, towards = draw(6, len(ROWS), LENGTH, 2 * devices, devices, 16, "float32")
    split, whole = PartitionSpec(None, None, axis, None), PartitionSpec()

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        return segment_attention(
            q, k, v, segments, positions, settings=AttentionSettings(scale=0.3, window=None, softcap=None)
        )

    across = placement.per_shard(local, [split, split, split, whole, whole], split)

    def loss(attention, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attention(q, k, v, segments, positions) * towards).sum()

    lowered = jax.jit(jax.grad(partial(loss, across), (0, 1, 2))).lower(q, k, v)
    assert "ryzjax_segment_backward" in lowered.as_text()
    want = jax.jit(jax.grad(partial(loss, local), (0, 1, 2)))(q, k, v)
    for mine, other in zip(lowered.compile()(q, k, v), want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)  # heads are added in another order


def test_what_they_cannot_read_is_refused():
    segments, positions = packed()
    q, k, v, towards = draw(7, len(ROWS), LENGTH, 4, 2, 8, "float32")
    half = jnp.dtype(jnp.float16)
    assert "float16" in str(native_segment_attention_refusal(half, half, half))
    assert "one dtype" in str(native_segment_attention_refusal(q.dtype, jnp.dtype(jnp.bfloat16), q.dtype))
    assert native_segment_attention_refusal(q.dtype, k.dtype, v.dtype) is None
    lse = jnp.zeros((len(ROWS), 4, LENGTH))
    for arguments, message in (
        ((q[:, :, :3], k, v, segments), "multiple of H"),
        ((q, k, v[:, 1:], segments), "expected"),
        ((q, k, v, segments[:, 1:]), "segment ids"),
        ((q.astype(half), k, v, segments), "float16"),
    ):
        with pytest.raises(ValueError, match=message):
            native_segment_forward(*arguments, None, **PLAIN)
        with pytest.raises(ValueError, match=message):
            native_segment_backward(*arguments, q, lse, towards, **PLAIN)
    with pytest.raises(Exception, match="float32 \\[B, N, S\\]"):
        jax.block_until_ready(native_segment_backward(q, k, v, segments, q, lse[:, :3], towards, **PLAIN))
    # float16 has the other implementation.
    halves = [x.astype(half) for x in (q, k, v)]
    lowered = jax.jit(
        partial(segment_attention, settings=AttentionSettings(scale=0.3, window=None, softcap=None))
    ).lower(*halves, segments, positions)
    assert "ryzjax_segment" not in lowered.as_text()
