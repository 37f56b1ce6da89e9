"""NormalFloat4 with double quantization, against its definition in float64 numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.qarray import QArray, dequantize, unpack_nibbles
from ryzjax.quant.nf4 import NF4_VALUES, dynamic_code, nearest_nf4, nf4_format
from ryzjax.quant.quantize_matrix import quantize_matrix


def matrix(rows: int, columns: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def rounded(w: np.ndarray, block: int) -> QArray:
    return quantize_matrix("w", jnp.asarray(w), nf4_format(block))


@pytest.mark.parametrize("block", [32, 64, 128])
def test_each_code_is_the_nearest_value(block: int):
    w = matrix(96, 256)
    relative = w.astype(np.float64).reshape(-1, block)
    relative /= np.abs(relative).max(axis=1, keepdims=True)
    distances = np.abs(relative[..., None] - NF4_VALUES.astype(np.float64))
    codes = np.asarray(unpack_nibbles(np.asarray(rounded(w, block).values), block)).reshape(-1, block)
    chosen = np.take_along_axis(distances, codes[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(axis=-1), rtol=0, atol=1e-7)


def test_values_between_two_codes_a_block_of_zeros_and_both_ends():
    middles = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / 2
    w = np.zeros((2, 32), np.float32)
    w[0, :15], w[0, 15:17] = middles, (1, -1)
    codes, magnitudes = nearest_nf4(jnp.asarray(w), 32)
    np.testing.assert_array_equal(codes[0, :17], [*range(15), 15, 0])
    np.testing.assert_array_equal(codes[1], 7)
    np.testing.assert_array_equal(magnitudes, [[1], [0]])


def test_scales_are_within_half_a_step_of_their_code():
    """Runs of 256 scales cross rows, and the last run is short."""
    w = matrix(50, 512)
    array = rounded(w, 64)
    assert array.scale_offset is not None and array.scale_blocks is not None
    wanted = np.abs(w.reshape(50, 8, 64)).max(axis=-1).astype(np.float64).reshape(-1)
    offset = wanted.mean()
    np.testing.assert_allclose(float(array.scale_offset), offset, rtol=1e-6)
    runs = np.pad(wanted - offset, (0, 112)).reshape(2, 256)
    np.testing.assert_allclose(array.scale_blocks, np.abs(runs).max(axis=1), rtol=1e-6)
    widest = np.diff(dynamic_code()).max() / 2
    error = np.abs(np.asarray(array.row_scales(), np.float64).reshape(-1) - wanted)
    assert (error <= 1.001 * widest * np.repeat(np.abs(runs).max(axis=1), 256)[:400]).all()
    # No code is closer than the chosen one.
    relative = ((wanted - offset) / np.repeat(np.abs(runs).max(axis=1), 256)[:400])[:, None]
    distances = np.abs(relative - dynamic_code())
    chosen = distances[np.arange(400), np.asarray(array.scales).reshape(-1)]
    np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=0, atol=1e-6)


def test_the_dynamic_code():
    values = dynamic_code()
    assert values.shape == (256,) and (np.diff(values) > 0).all()
    assert values[127] == 0 and values[255] == 1 and values[254] == np.float32(0.1 + 0.9 * 63.5 / 64)
    np.testing.assert_array_equal(values[:127], -values[128:255][::-1])


def test_error_and_bytes():
    """The relative squared error of NF4 with blocks of 64 on normal weights is near 0.8%; nested scales add little."""
    w = matrix(2048, 1024)  # two panels
    array = rounded(w, 64)
    error = np.mean((np.asarray(dequantize(array)) - w) ** 2) / np.mean(w**2)
    codes, magnitudes = nearest_nf4(jnp.asarray(w), 64)
    exact = NF4_VALUES[np.asarray(codes)] * np.repeat(np.asarray(magnitudes), 64, axis=1)
    plain = np.mean((exact - w) ** 2) / np.mean(w**2)
    assert plain < 0.0085 and error < 1.01 * plain
    assert array.nbytes == w.size // 2 + w.size // 64 + 4 * w.size // 64 // 256 + 4 * (16 + 256 + 1)
