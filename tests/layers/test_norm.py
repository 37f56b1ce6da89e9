"""RMSNorm against its formula in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.layers.norm import RMSNorm
from ryzjax.native.library import native_refusal
from ryzjax.sharding import Placement
from tests.layers.filled import ONE, TWO, filled, normal

EPS = 1e-2


def norm(dtype: str, offset: float, placement: Placement = ONE) -> RMSNorm:
    return filled(RMSNorm(16, eps=EPS, dtype=dtype, placement=placement, offset=offset))


def formula(x: jax.Array, layer: RMSNorm) -> np.ndarray:
    x64, weight = np.asarray(x, np.float64), np.asarray(layer.weight[...], np.float64)
    return x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + EPS) * (layer.offset + weight)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(3, 16), (3, 2, 16)])
def test_the_formula_rounded_once(dtype: str, tolerance: float, offset: float, shape: tuple[int, ...]):
    layer, x = norm(dtype, offset), normal(shape, dtype=dtype)
    got = layer(x)
    assert got.dtype == jnp.dtype(dtype) and got.shape == shape
    np.testing.assert_allclose(np.asarray(got, np.float64), formula(x, layer), rtol=tolerance, atol=1e-7)


def test_eps_bounds_small_rows():
    layer = norm("float32", 1.0)
    x = normal((2, 16)) * 1e-3
    np.testing.assert_allclose(layer(x), x / np.sqrt(EPS) * (1 + layer.weight[...]), rtol=1e-3)


@pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
@pytest.mark.parametrize(("placement", "calls"), [(ONE, 1), (TWO, 0)], ids=["one", "two"])
def test_the_kernel_runs_on_one_device_only(placement: Placement, calls: int):
    layer, x = norm("float32", 0.0, placement), normal((3, 16))
    traced = jax.jit(lambda x: layer(x)).trace(x)
    assert traced.lower().as_text().count("@ryzjax_rms_norm") == calls
    np.testing.assert_allclose(traced.lower().compile()(x), formula(x, layer), rtol=1e-6)
