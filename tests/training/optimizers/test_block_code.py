"""The 8-bit block code against its definition in numpy: values, rounding and blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.training.optimizers.block_code import BLOCK_SIZE, BlockCoded, code_values, decode, encode, zeros_coded


def definition(signed: bool) -> np.ndarray:
    """Returns the values of the dynamic tree code: midpoints of equal steps over each decade, zero and one."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1) * 10.0 ** (decade - 6)
        middles = (edges[:-1] + edges[1:]) / 2
        values += [*middles, *(-middles if signed else [])]
    return np.sort(np.array(values)).astype(np.float32)


def blocks_of(x: np.ndarray) -> list[np.ndarray]:
    """Returns the flat indices of the elements of each block of an array."""
    index = np.arange(x.size).reshape(x.shape)
    if x.shape[-1] % BLOCK_SIZE:
        index = index.reshape(*x.shape[:-2], -1)
    rows = index.reshape(-1, index.shape[-1])
    return [row[i : i + BLOCK_SIZE] for row in rows for i in range(0, len(row), BLOCK_SIZE)]


def rounded(x: np.ndarray, signed: bool) -> np.ndarray:
    """Rounds to the nearest values, block by block."""
    values, flat = definition(signed), x.reshape(-1)
    out = np.zeros_like(flat)
    for block in blocks_of(x):
        scale = np.abs(flat[block]).max()
        if scale > 0:
            nearest = np.abs((flat[block] / scale)[:, None] - values).argmin(1)
            out[block] = values[nearest] * scale
    return out.reshape(x.shape)


def heavy_tailed(shape: tuple[int, ...], signed: bool) -> np.ndarray:
    rng = np.random.default_rng(len(shape))
    x = (rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))).astype(np.float32)
    return x if signed else np.abs(x)


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_the_paper(signed: bool):
    values = code_values(signed=signed)
    assert values.shape == (256,)
    np.testing.assert_allclose(np.sort(values), definition(signed), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 512), (2, 3, 256), (4096,), (5, 7, 100), (1000,), (3, 300, 8), (2, 2, 9, 30)])
def test_rounding_is_to_the_nearest_value_of_the_block(shape: tuple[int, ...], signed: bool):
    x = heavy_tailed(shape, signed)
    coded = jax.jit(lambda x: encode(x, signed=signed))(x)
    assert coded.codes.shape == shape and coded.codes.dtype == np.uint8
    assert coded.scales.size == len(blocks_of(x))
    np.testing.assert_allclose(np.asarray(decode(coded, signed=signed)), rounded(x, signed), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_comes_back(signed: bool):
    codes = np.arange(256, dtype=np.uint8)[None]
    coded = BlockCoded(codes=jax.numpy.asarray(codes), scales=jax.numpy.full((1, 1), 3.0))
    again = encode(decode(coded, signed=signed), signed=signed)
    np.testing.assert_array_equal(np.asarray(again.codes), codes)
    np.testing.assert_array_equal(np.asarray(again.scales), [[3.0]])


def test_zeros_stay_zeros():
    for shape in ((2, 512), (3, 40, 8)):
        zeros = zeros_coded(shape)
        again = encode(jnp.zeros(shape, jnp.float32), signed=True)
        assert jax.tree.map(lambda x: x.shape, zeros) == jax.tree.map(lambda x: x.shape, again)
        assert not np.asarray(decode(again, signed=True)).any()
        assert not np.asarray(decode(zeros, signed=False)).any()


def test_what_is_positive_stays_positive():
    x = np.full((1, 256), 1e-12, np.float32)
    x[0, 0], x[0, 1] = 1.0, 0.0
    x = jnp.asarray(x)
    kept = np.asarray(decode(encode(x, signed=False, keep_positive=True), signed=False))
    assert kept[0, 1] == 0 and (kept[0, 2:] == code_values(signed=False)[1]).all()
    assert not np.asarray(decode(encode(x, signed=False), signed=False))[0, 1:].any()
