"""Gradients through the native kernels are those of the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.native.library import native_refusal
from ryzjax.native.linear import native_project
from ryzjax.ops.linear.project import project_on_device
from ryzjax.ops.linear.reference import project_plain
from ryzjax.ops.norm import RMS_NORM
from ryzjax.qarray import dequantize
from tests.qarrays import FORMATS, random_qarray

pytestmark = pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
RNG = np.random.default_rng(0)


def bfloat16(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.bfloat16)


def assert_close(a: jax.Array, b: jax.Array):
    """Within a step of bfloat16 at the size of the largest: sums are rounded in another order."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, atol=np.abs(b).max() / 128, rtol=0)
    assert np.abs(a - b).mean() < np.abs(b).mean() / 500


def test_linears_plain_and_quantized():
    x, plain, packed = bfloat16(5, 128), bfloat16(37, 128), random_qarray(RNG, FORMATS["int4"], (24, 128))

    def native(x: jax.Array, plain: jax.Array) -> jax.Array:
        a, b = native_project(x, [plain, packed])
        return (a**2).sum() + jnp.sin(b).sum()

    def reference(x: jax.Array, plain: jax.Array) -> jax.Array:
        return (project_plain(x, plain) ** 2).sum() + jnp.sin(project_plain(x, dequantize(packed, jnp.bfloat16))).sum()

    got = jax.jit(jax.grad(native, (0, 1)))(x, plain)
    wanted = jax.jit(jax.grad(reference, (0, 1)))(x, plain)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype == jnp.bfloat16
        assert_close(one, other)


def test_project_can_be_differentiated():
    x, plain, packed = bfloat16(3, 64), bfloat16(8, 64), random_qarray(RNG, FORMATS["int8"], (16, 64))
    got = jax.jit(jax.grad(lambda x: sum(y.sum() for y in project_on_device(x, [plain, packed]))))(x)
    dense = jnp.concatenate([plain, dequantize(packed, jnp.bfloat16)]).astype(jnp.float32)
    assert_close(got, jnp.broadcast_to(dense.sum(0), x.shape).astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm(dtype: jnp.dtype):
    x, weight, factor = (bfloat16(*shape).astype(dtype) for shape in ((4, 96), (96,), (4, 96)))

    def loss(norm, x: jax.Array, weight: jax.Array) -> jax.Array:
        return (norm(x, weight, eps=1e-6, offset=1.0) * factor).astype(jnp.float32).sum()

    got = jax.jit(jax.grad(lambda x, w: loss(RMS_NORM, x, w), (0, 1)))(x, weight)
    wanted = jax.jit(jax.grad(lambda x, w: loss(RMS_NORM.reference, x, w), (0, 1)))(x, weight)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other)
