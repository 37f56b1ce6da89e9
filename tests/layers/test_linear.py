"""Linear layers with a bias, several at once, in every quantized format and on two devices, against plain products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.layers.linear import Linear, project
from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.weight import Weight
from ryzjax.native.library import native_refusal
from ryzjax.sharding import Placement
from tests.layers.filled import ONE, TWO, compiled, filled, normal
from tests.qarrays import FORMATS, expected, random_leaves

K, N = 64, 96
# The largest error of each dtype, relative to the largest number. Products of bfloat16 are summed in float32.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5}


def linear(
    placement: Placement = ONE,
    *,
    dtype: str = "float32",
    bias: bool = False,
    in_axis: str | None = "embed",
    out_axis: str | None = "ffn",
) -> Linear:
    return filled(Linear(K, N, in_axis=in_axis, out_axis=out_axis, bias=bias, dtype=dtype, placement=placement))


def plain(x: jax.Array, layer: Linear) -> np.ndarray:
    """Returns x W^T + b in float64."""
    assert not isinstance(layer.weight, QuantizedWeight)
    out = np.asarray(x, np.float64) @ np.asarray(layer.weight[...], np.float64).T
    return out if layer.bias is None else out + np.asarray(layer.bias[...], np.float64)


def check(got: jax.Array, want: np.ndarray, tolerance: float) -> None:
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_product_and_a_bias(dtype: str, bias: bool, rows: int):
    layer, x = linear(dtype=dtype, bias=bias), normal((rows, K), dtype=dtype)
    check(layer(x), plain(x, layer), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_layers_run_together_give_what_each_gives_alone(dtype: str):
    layers = [linear(dtype=dtype, bias=bias) for bias in (True, False, True)]
    other = layers[1].weight
    assert isinstance(other, Weight)
    other[...] = normal((N, K), seed=8, dtype=dtype)
    x = normal((5, K), dtype=dtype)
    for got, layer in zip(project(x, layers), layers, strict=True):
        np.testing.assert_array_equal(got, layer(x))
        check(got, plain(x, layer), TOLERANCE[dtype])


@pytest.mark.skipif(native_refusal() is not None, reason=f"no native kernels: {native_refusal()}")
@pytest.mark.parametrize(("dtype", "calls"), [("bfloat16", 1), ("float32", 0)])
def test_layers_run_together_are_one_call_of_the_kernel(dtype: str, calls: int):
    layers = [linear(dtype=dtype, bias=True) for _ in range(3)]
    text = jax.jit(lambda x: project(x, layers)).lower(normal((5, K), dtype=dtype)).as_text()
    assert text.count("@ryzjax_linear") == calls


@pytest.mark.parametrize("name", list(FORMATS))
def test_quantized_weights(name: str):
    format = FORMATS[name]
    layer, x = linear(bias=True), normal((5, K))
    layer.quantize("test", format)
    assert isinstance(layer.weight, QuantizedWeight)
    leaves = random_leaves(np.random.default_rng(1), format, (N, K))
    assert set(leaves) == set(layer.weight.leaves())
    for leaf, variable in layer.weight.leaves().items():
        assert variable.shape == leaves[leaf].shape and variable.dtype == leaves[leaf].dtype
        variable[...] = jnp.asarray(leaves[leaf])
    assert layer.bias is not None
    product = np.asarray(x, np.float64) @ expected(layer.weight.array()).T
    # W8A8 quantizes activations to steps of 1/127 of the largest one.
    tolerance = 2e-2 if format.activations else 1e-2
    check(layer(x) - layer.bias[...], product, tolerance)


def test_a_format_that_does_not_fit_is_an_error():
    layer = Linear(48, N, in_axis=None, out_axis=None, dtype="float32", placement=ONE)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up: K=48 in features.*another group size"):
        layer.quantize("layers.0.mlp.up", FORMATS["int4"])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("in_axis", "out_axis", "split"), [("embed", "ffn", True), ("ffn", "embed", False)])
def test_two_devices_give_the_product_of_one(dtype: str, in_axis: str, out_axis: str, split: bool):
    layer = linear(TWO, dtype=dtype, bias=True, in_axis=in_axis, out_axis=out_axis)
    x = normal((5, K), dtype=dtype)
    got = compiled(layer, TWO, lambda layer, x: layer(x), x).run(x)
    check(got, plain(x, layer), TOLERANCE[dtype])
    assert got.sharding.shard_shape(got.shape) == ((5, N // 2) if split else (5, N))
