"""project_integer: activations quantized to int8 in groups, times low-bit weights."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.ops.linear.integer import project_integer, quantize_groups
from ryzjax.ops.linear.quantized import project_quantized
from ryzjax.qarray import ACTIVATION_GROUP, QArray, QFormat, dequantize
from tests.qarrays import FORMATS, random_qarray

INTEGER = {
    name: replace(format, activations="int8_groups")
    for name, format in FORMATS.items()
    if format.activations is None and format.int8_groups_refusal() is None
}


def test_two_groups_by_hand():
    x = np.zeros((1, 64), np.float32)
    x[0, 0], x[0, 1] = 2.0, -1.0  # scale 2 / 127: 127 and -63.5, which rounds to the even -64
    x[0, 32] = -0.5  # scale 0.5 / 127: -127
    q, scales = quantize_groups(jnp.asarray(x))
    assert q.shape == (1, 2, ACTIVATION_GROUP) and q[0, 0, :2].tolist() == [127, -64] and q[0, 1, 0] == -127
    np.testing.assert_allclose(scales, [[2 / 127, 0.5 / 127]], rtol=1e-6)
    values = np.zeros((1, 64), np.int8)
    values[0, 0], values[0, 1], values[0, 32] = 3, 5, -128
    format = QFormat(kind="int8", group=32, activations="int8_groups")
    weight = QArray(format=format, values=jnp.asarray(values), scales=jnp.asarray([[0.5, 0.25]], jnp.float32))
    want = (3 * 127 - 5 * 64) * (2 / 127) * 0.5 + 128 * 127 * (0.5 / 127) * 0.25
    np.testing.assert_allclose(project_integer(jnp.asarray(x), weight), [[want]], rtol=1e-6)


@pytest.mark.parametrize("name", INTEGER)
def test_it_is_near_the_product_with_the_dequantized_weights(name: str):
    rng = np.random.default_rng(0)
    weight = random_qarray(rng, replace(INTEGER[name], has_order=False), (24, 128))
    x = jnp.asarray(rng.standard_normal((5, 128)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(weight), np.float64).T
    got = np.asarray(project_quantized(x, weight), np.float64)
    # An error of half a step of 1/127 of the largest of 32 numbers, and of a codebook's entries, averaged over 128.
    assert np.linalg.norm(got - exact) < 0.01 * np.linalg.norm(exact)


def test_groups_of_16_columns_that_end_within_a_group_of_activations():
    rng = np.random.default_rng(3)
    weight = random_qarray(rng, replace(INTEGER["int8_halves"]), (24, 48))
    x = jnp.asarray(rng.standard_normal((5, 48)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(weight), np.float64).T
    got = np.asarray(project_quantized(x, weight), np.float64)
    assert np.linalg.norm(got - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(odd: float):
    rng = np.random.default_rng(1)
    weight = random_qarray(rng, QFormat(kind="int8", activations="int8_groups"), (8, 64))
    x = rng.standard_normal((3, 64)).astype(np.float32)
    before = project_integer(jnp.asarray(x), weight)
    x[1, 40] = odd
    after = np.asarray(project_integer(jnp.asarray(x), weight))
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 2]], np.asarray(before)[[0, 2]])


def test_the_gradient_is_that_of_the_dequantized_product():
    rng = np.random.default_rng(2)
    weight = random_qarray(rng, QFormat(kind="int8", group=32, activations="int8_groups"), (8, 64))
    x = jnp.asarray(rng.standard_normal((3, 64)), jnp.float32)
    grad = jax.grad(lambda x: project_integer(x, weight)[:, 2].sum())(x)
    np.testing.assert_allclose(grad, jnp.broadcast_to(dequantize(weight)[2], x.shape), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "float8"}, "float8"),
        ({"kind": "int8", "group": 24}, "multiple of 32, or 16 for int8"),
        ({"kind": "int4", "group": 16, "pack": 16}, "multiple of 32"),
    ],
)
def test_formats_that_do_not_permit_it(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        QFormat(**fields, activations="int8_groups")
