"""quantized_linear against the dequantized product in float64, in every format and with odd shapes."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ryzjax import qarray
from ryzjax.ops.linear.project import project_on_device
from ryzjax.ops.linear.quantized import (
    _float8_to_float32,
    permute_columns,
    project_by_panels,
    project_dequantized,
    project_quantized,
    quantize_rows,
)
from ryzjax.qarray import LEAVES, QArray, QFormat, dequantize
from tests.qarrays import FORMATS, random_qarray

WEIGHT_ONLY = [name for name, format in FORMATS.items() if format.activations is None and not format.has_order]


def inputs(format: QFormat, rows: int, n: int, k: int) -> tuple[jax.Array, QArray]:
    rng = np.random.default_rng(rows * n + k)
    return jnp.asarray(rng.standard_normal((rows, k)), jnp.float32), random_qarray(rng, format, (n, k))


@pytest.mark.parametrize("name", WEIGHT_ONLY)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 32, 64), (2, 40, 96), (9, 600, 64), (33, 1, 32), (8, 1030, 128)])
def test_against_float64(name: str, rows: int, n: int, k: int):
    x, weight = inputs(FORMATS[name], rows, n, k)
    wanted = np.asarray(x, np.float64) @ np.asarray(dequantize(weight), np.float64).T
    # The tolerance covers float32 sums over K terms.
    tolerance = 1e-6 * np.abs(wanted).max()
    for compute in (project_by_panels, project_dequantized, project_quantized):
        np.testing.assert_allclose(jax.jit(compute)(x, weight), wanted, atol=tolerance * k**0.5, rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_bfloat16_activations_round_the_weights_to_bfloat16(name: str):
    x, weight = inputs(FORMATS[name], 5, 300, 128)
    x = x.astype(jnp.bfloat16)
    rounded = np.asarray(dequantize(weight, jnp.bfloat16), np.float64)
    wanted = np.asarray(x, np.float64) @ rounded.T
    np.testing.assert_allclose(
        jax.jit(project_by_panels)(x, weight), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=1e-5
    )


def test_a_block_that_overhangs():
    """FP8 blocks of 128 x 128, with sizes that are not multiples of 128."""
    x, weight = inputs(QFormat(kind="float8", group=128, rows=128), 3, 300, 200)
    wanted = np.asarray(x) @ np.asarray(dequantize(weight)).T
    np.testing.assert_allclose(jax.jit(project_by_panels)(x, weight), wanted, rtol=1e-4, atol=1e-4)


def test_int8_products_are_exact():
    x, weight = inputs(FORMATS["w8a8"], 7, 50, 96)
    q, scale = quantize_rows(x)
    assert np.abs(np.asarray(q)).max() == 127
    product = np.asarray(q, np.int64) @ np.asarray(weight.values, np.int64).T
    wanted = product * np.asarray(scale, np.float64) * np.asarray(weight.scales, np.float64)[:, 0]
    np.testing.assert_allclose(jax.jit(project_quantized)(x, weight), wanted, rtol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(project_quantized(x[:1], weight))[0], np.asarray(project_quantized(x, weight))[0]
    )


def test_activations_come_back_within_half_a_step():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)), jnp.float32).at[2].set(0)
    q, scale = quantize_rows(x)
    assert np.all(np.abs(np.asarray(q) * np.asarray(scale) - np.asarray(x)) <= np.asarray(scale) / 2 * 1.0001)
    assert np.asarray(scale)[2, 0] == 1.0 and not np.any(np.asarray(q)[2])


def test_a_row_does_not_depend_on_the_others():
    x, weight = inputs(FORMATS["int4"], 16, 600, 128)
    every = np.asarray(jax.jit(project_by_panels)(x, weight))
    changed = np.asarray(jax.jit(project_by_panels)(x.at[1:].multiply(3.0), weight))
    np.testing.assert_array_equal(every[0], changed[0])


@pytest.mark.parametrize("name", ["int4", "int8", "nf4", "float8_rows", "w8a8"])
def test_no_dequantized_copy_of_a_weight(name: str):
    """Temporaries are a panel and the output, much less than the matrix in 16 bits."""
    n, k = 4096, 1024
    format = FORMATS[name]
    shapes = {leaf: jax.ShapeDtypeStruct(*s) for leaf, s in format.leaf_shapes((n, k)).items()}
    weight = QArray(format=format, **shapes)  # pyright: ignore
    x = jax.ShapeDtypeStruct((8, k), jnp.bfloat16)
    analysis = jax.jit(project_quantized).lower(x, weight).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 0.3 * 2 * n * k


def test_float8_bits_become_their_values():
    bits = jnp.arange(256, dtype=jnp.uint8)
    values = np.asarray(bits.view(jnp.float8_e4m3fn).astype(jnp.float32))
    finite = np.isfinite(values)
    assert finite.sum() == 254
    np.testing.assert_array_equal(np.asarray(jax.jit(_float8_to_float32)(bits))[finite], values[finite])


def test_bias_is_added_in_float32():
    x, weight = inputs(FORMATS["int4"], 3, 40, 64)
    bias = jnp.arange(40, dtype=jnp.bfloat16)
    plain = project_quantized(x, weight)
    np.testing.assert_array_equal(project_quantized(x, weight, bias), plain + bias.astype(jnp.float32))


def test_the_caller_permutes():
    x, weight = inputs(FORMATS["int4_order"], 3, 40, 64)
    assert weight.order is not None
    wanted = np.asarray(x) @ np.asarray(dequantize(weight)).T
    permuted = project_quantized(x[:, weight.order], replace(weight, order=None))
    np.testing.assert_allclose(permuted, wanted, rtol=1e-5, atol=1e-5)


def gradient(x: jax.Array, weight: QArray, factor: jax.Array) -> jax.Array:
    return jax.jit(jax.grad(lambda x: (project_quantized(x, weight) * factor).sum()))(x)


@pytest.mark.parametrize("name", [*WEIGHT_ONLY, "w8a8"])
@pytest.mark.parametrize("panel", [2**21, 2**12])
def test_gradient_of_the_input(name: str, panel: int, monkeypatch: pytest.MonkeyPatch):
    """Covers whole matrices, panels of columns whose last one overlaps, float8 blocks and int8 activations."""
    monkeypatch.setattr(qarray, "_PANEL_ELEMENTS", panel)
    x, weight = inputs(FORMATS[name], 6, 96, 160)
    factor = jnp.asarray(np.random.default_rng(1).standard_normal((6, 96)), jnp.float32)
    wanted = np.asarray(factor, np.float64) @ np.asarray(dequantize(weight), np.float64)
    np.testing.assert_allclose(gradient(x, weight, factor), wanted, atol=2e-6 * np.abs(wanted).max(), rtol=0)
    half = gradient(x.astype(jnp.bfloat16), weight, factor)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), wanted, atol=np.abs(wanted).max() / 128, rtol=0)


def test_gradient_where_blocks_overhang():
    x, weight = inputs(QFormat(kind="float8", group=128, rows=128), 3, 300, 200)
    wanted = np.ones((3, 300)) @ np.asarray(dequantize(weight), np.float64)
    np.testing.assert_allclose(gradient(x, weight, jnp.ones((3, 300))), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "w8a8", "nf4"])
def test_gradient_where_columns_are_split_over_devices(name: str):
    """The gradient counts the sum over devices once, not once per device."""
    x, weight = inputs(FORMATS[name], 6, 40, 256)
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    columns = PartitionSpec(None, "tensor")
    leaf = {"codebook": PartitionSpec(), "scales": PartitionSpec() if name == "w8a8" else columns}
    specs = QArray(
        format=weight.format,
        **{  # pyright: ignore
            part: leaf.get(part, columns) for part in LEAVES if getattr(weight, part) is not None
        },
    )
    split = jax.shard_map(
        lambda x, weight: project_quantized(x, weight, summed_over=("tensor",)),
        mesh=mesh, in_specs=(columns, specs), out_specs=PartitionSpec(), check_vma=False,
    )  # fmt: skip
    factor = jnp.asarray(np.random.default_rng(1).standard_normal((6, 40)), jnp.float32)
    got = jax.jit(jax.grad(lambda x: (split(x, weight) * factor).sum()))(x)
    wanted = np.asarray(factor) @ np.asarray(dequantize(weight))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_no_dequantized_copy_for_a_gradient():
    """Temporaries are a panel and the gradient, much less than the matrix in 16 bits."""
    n, k = 4096, 4096
    format = FORMATS["nf4"]
    shapes = {leaf: jax.ShapeDtypeStruct(*s) for leaf, s in format.leaf_shapes((n, k)).items()}
    weight = QArray(format=format, **shapes)  # pyright: ignore
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.ShapeDtypeStruct((8, k), dtype)
        step = jax.jit(jax.grad(lambda x, weight: (project_on_device(x, [weight])[0] ** 2).sum()))
        analysis = step.lower(x, weight).compile().memory_analysis()
        assert analysis is not None
        assert analysis.temp_size_in_bytes < 0.6 * 2 * n * k


def test_gradient_of_a_permutation():
    rng = np.random.default_rng(0)
    x, factor = (jnp.asarray(rng.standard_normal((3, 40)), jnp.float32) for _ in range(2))
    order = jnp.asarray(rng.permutation(40))
    np.testing.assert_array_equal(permute_columns(x, order), np.asarray(x)[:, np.asarray(order)])
    got = jax.jit(jax.grad(lambda x: (permute_columns(x, order) * factor).sum()))(x)
    wanted = np.zeros((3, 40), np.float32)
    wanted[:, np.asarray(order)] = factor
    np.testing.assert_array_equal(got, wanted)
