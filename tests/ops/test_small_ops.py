"""linear, rms_norm, rope and embed against hand-worked numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.layers.rope import Llama3Rope, Rope
from ryzjax.ops.embedding import embed
from ryzjax.ops.linear.reference import project_plain
from ryzjax.ops.norm import RMS_NORM
from ryzjax.ops.rope import apply_rope, rope_cos_sin


def test_linear_by_hand_and_for_one_row():
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    out = project_plain(jnp.array([[1.0, 10.0]]), weight, jnp.array([0.5, 0.0, 0.0]))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [[21.5, 43.0, 65.0]])


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_linear_bf16_accumulates_in_f32(rows: int):
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.standard_normal((rows, 300)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((70, 300)), jnp.bfloat16)
    out = project_plain(x, w)
    assert out.dtype == jnp.float32 and out.shape == (rows, 70)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(out, exact, atol=1e-3)  # an accumulator in bf16 would be off by 0.1


def test_rms_norm_by_hand():
    out = RMS_NORM(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 2.0]), eps=0.0, offset=0.0)
    np.testing.assert_allclose(out, [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]], rtol=1e-6)
    shifted = RMS_NORM(jnp.array([[3.0, 4.0]]), jnp.array([0.0, 1.0]), eps=0.0, offset=1.0)
    np.testing.assert_allclose(shifted, out, rtol=1e-6)
    assert RMS_NORM(jnp.zeros((1, 2)), jnp.ones(2), eps=1e-5, offset=0.0).tolist() == [[0.0, 0.0]]


def test_rope_rotates_halves_by_the_position():
    freq = Rope(theta=100.0, rotary_dim=4).inv_freq()
    np.testing.assert_allclose(freq, [1.0, 0.1], rtol=1e-6)
    cos, sin = rope_cos_sin(jnp.array([0, 2]), freq, 1.0)
    x = jnp.array([[[1.0, 0.0, 0.0, 1.0]]] * 2)
    out = apply_rope(x, cos, sin)
    np.testing.assert_allclose(out[0, 0], [1.0, 0.0, 0.0, 1.0], atol=1e-6)
    # rotates the pair (x0, x2) = (1, 0) by 2 and the pair (x1, x3) = (0, 1) by 0.2 radians
    np.testing.assert_allclose(out[1, 0], [np.cos(2), -np.sin(0.2), np.sin(2), np.cos(0.2)], atol=1e-6)


def test_partial_rotary_leaves_the_rest_of_a_head_alone():
    cos, sin = rope_cos_sin(jnp.array([3]), np.array([1.0], np.float32), 2.0)
    out = apply_rope(jnp.array([[[1.0, 0.0, 5.0, 6.0]]]), cos, sin)
    np.testing.assert_allclose(out[0, 0], [2 * np.cos(3), 2 * np.sin(3), 5.0, 6.0], rtol=1e-6)


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between():
    freq = Rope(theta=500_000.0, rotary_dim=128).inv_freq()
    scaled = Llama3Rope(
        theta=500_000.0,
        rotary_dim=128,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    ).inv_freq()
    wavelength = 2 * np.pi / freq
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(scaled[short], freq[short])
    np.testing.assert_allclose(scaled[long], freq[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.any() and (scaled[between] < freq[between]).all() and (scaled[between] > freq[between] / 8).all()


def test_embed_clamps_padding():
    table = jnp.arange(6.0).reshape(3, 2)
    assert embed(jnp.array([2, 0, 99]), table).tolist() == [[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]
