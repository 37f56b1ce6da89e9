"""QArray: the values that its leaves stand for, and the bytes that they take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzjax.qarray import QFormat, dequantize, pack_nibbles, pack_run, unpack_nibbles
from tests.qarrays import FORMATS, expected, random_qarray


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(32, 64), (40, 96), (1, 32)])
def test_dequantize_is_what_the_format_says(name: str, shape: tuple[int, int]):
    weight = random_qarray(np.random.default_rng(0), FORMATS[name], shape)
    assert weight.shape == shape
    np.testing.assert_allclose(dequantize(weight), expected(weight), rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["int4", "int8_zeros"])
def test_stacked_matrices(name: str):
    weight = random_qarray(np.random.default_rng(0), FORMATS[name], (3, 8, 64))
    np.testing.assert_allclose(dequantize(weight), expected(weight), rtol=3e-6, atol=1e-9)


# numpy runs a hundred shapes. XLA compiles for each new shape, so it runs only the few below.
@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([2, 8, 32, 128]))
def test_nibbles_come_back(rows: int, runs: int, pack: int):
    q = np.random.default_rng(0).integers(0, 16, (rows, runs * pack), dtype=np.uint8)
    packed = pack_nibbles(q, pack)
    assert packed.shape == (rows, runs * pack // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, pack), q)


@pytest.mark.parametrize(("rows", "runs", "pack"), [(1, 1, 2), (3, 4, 8), (4, 2, 128)])
def test_xla_unpacks_nibbles_as_numpy_does(rows: int, runs: int, pack: int):
    q = np.random.default_rng(0).integers(0, 16, (rows, runs * pack), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_nibbles(jnp.asarray(pack_nibbles(q, pack)), pack), q)


def test_the_halves_of_a_run_are_contiguous():
    q = np.arange(16, dtype=np.uint8)[None]
    assert pack_nibbles(q, 16).tolist() == [[i | (i + 8) << 4 for i in range(8)]]


def test_four_bits_with_scales_weigh_at_most_0_27_of_bfloat16():
    shape = (4096, 11008)
    bfloat16 = 2 * shape[0] * shape[1]
    plain = QFormat(kind="int4", group=128, pack=128, scale_dtype="bfloat16")
    with_zeros = QFormat(kind="int4", group=128, pack=128, scale_dtype="float16", has_zeros=True)
    nested = QFormat(kind="float4", group=64, pack=64, scale_dtype="nested")
    assert plain.nbytes(shape) / bfloat16 == pytest.approx(0.2578, abs=1e-4)
    assert with_zeros.nbytes(shape) / bfloat16 < 0.27
    assert nested.nbytes(shape) / bfloat16 < 0.26
    small = random_qarray(np.random.default_rng(0), plain, (64, 256))
    assert small.nbytes == plain.nbytes((64, 256)) == sum(leaf.nbytes for leaf in jax.tree.leaves(small))


def test_a_qarray_is_a_pytree_with_its_format_static():
    weight = random_qarray(np.random.default_rng(0), FORMATS["int4_zeros"], (8, 32))
    leaves, tree = jax.tree.flatten(weight)
    assert len(leaves) == 3
    assert jax.tree.unflatten(tree, leaves).format == weight.format
    assert jax.tree.structure(weight) != jax.tree.structure(
        random_qarray(np.random.default_rng(0), FORMATS["int4"], (8, 32))
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "int4"}, "pack=0"),
        ({"kind": "int8", "pack": 32}, "pack=32"),
        ({"kind": "int4", "pack": 32, "group": 48}, "divide group=48"),
        ({"kind": "int8", "group": 32, "activations": "int8"}, "one scale per row"),
        ({"kind": "int8", "zero_dtype": "float16"}, "has_zeros=True"),
        ({"kind": "float8", "has_zeros": True, "zero_dtype": "float16"}, "expected 'integer', or int4"),
    ],
)
def test_formats_that_make_no_sense(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        QFormat(**fields)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="172 in features"):
        FORMATS["int4_rows"].leaf_shapes((64, 172))
    with pytest.raises(ValueError, match="K=172 in features cannot be packed in groups of 32"):
        pack_run(172, 32)
    with pytest.raises(ValueError, match="K=172 in features cannot be packed in runs of 32"):
        pack_run(172, None)
    assert pack_run(256, 64) == 64 and pack_run(256, None) == 32
