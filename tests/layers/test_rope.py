"""RoPE scalings against hand-worked frequencies.

With theta 16 and 8 features, the plain inverse frequencies are 16^(-2i / 8) = 1, 1/2, 1/4, 1/8.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ryzjax.layers.rope import DynamicRope, FactorRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope

PLAIN = np.array([1, 1 / 2, 1 / 4, 1 / 8])
POSITIONS = np.array([0, 3, 40])


def check_tables(rope: Rope, inv_freq: np.ndarray, *, lengths: tuple[int, ...] = (1, 4, 41), factor: float = 1.0):
    """Asserts that the tables hold cos and sin of position times `inv_freq`, given for all tokens or per token."""
    cos, sin = rope.cos_sin(jnp.asarray(POSITIONS), jnp.asarray(lengths))
    assert cos.dtype == sin.dtype == jnp.float32
    angles = POSITIONS[:, None] * inv_freq
    np.testing.assert_allclose(cos, np.cos(angles) * factor, atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(angles) * factor, atol=1e-5)


def test_plain():
    check_tables(Rope(theta=16.0, rotary_dim=8), PLAIN)


def test_linear_divides_positions():
    check_tables(LinearRope(theta=16.0, rotary_dim=8, factor=4.0), PLAIN / 4)


def test_factors_divide_each_frequency():
    check_tables(FactorRope(theta=16.0, rotary_dim=8, factors=(1.0, 2.0, 4.0, 5.0)), PLAIN / [1, 2, 4, 5])


@pytest.mark.parametrize(
    ("pairs", "truncate", "ramp"),
    [
        ((0, 3), False, [0, 1 / 3, 2 / 3, 1]),
        ((0.5, 2.5), False, [0, 1 / 4, 3 / 4, 1]),
        ((0.5, 2.5), True, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_yarn_blends_along_the_ramp(pairs: tuple[float, float], truncate: bool, ramp: list[float]):
    # Pair i turns 64 / (2 pi 2^i) times over 64 positions, so these betas start and end the ramp at `pairs`.
    fast, slow = (64 / (2 * math.pi * 2**pair) for pair in pairs)
    rope = YarnRope(
        theta=16.0,
        rotary_dim=8,
        factor=2.0,
        original_max_position=64,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=1.5,
        truncate=truncate,
    )
    # Along the ramp a frequency goes from its own value to half of it.
    check_tables(rope, PLAIN * (1 - np.array(ramp) / 2), factor=1.5)


def test_llama3_blends_one_frequency():
    rope = Llama3Rope(
        theta=16.0, rotary_dim=8, factor=8.0, low_freq_factor=4.0, high_freq_factor=8.0, original_max_position=100
    )
    # Over 100 positions the pairs turn 15.9, 7.96, 3.98 and 1.99 times: above 8 is kept, below 4 is divided.
    smooth = (100 / (2 * math.pi * 2) - 4) / (8 - 4)
    check_tables(rope, PLAIN * [1, smooth + (1 - smooth) / 8, 1 / 8, 1 / 8])


def test_dynamic_grows_the_base_of_a_long_sequence_only():
    rope = DynamicRope(theta=16.0, rotary_dim=8, factor=2.0, original_max_position=16)
    # At 32 of 16 tokens the base is 16 * (2 * 32 / 16 - 1)^(8 / 6).
    long = (16 * 3 ** (8 / 6)) ** (-np.arange(4) / 4)
    check_tables(rope, np.stack([PLAIN, long, long]), lengths=(16, 32, 32))
    check_tables(rope, PLAIN, lengths=(1, 9, 16))


def test_longrope_selects_factors_by_the_length_of_each_token():
    rope = LongRope(
        theta=16.0,
        rotary_dim=8,
        short_factor=(1.0, 1.0, 2.0, 2.0),
        long_factor=(1.0, 2.0, 4.0, 8.0),
        original_max_position=16,
        attention_factor=1.25,
    )
    short, long = PLAIN / [1, 1, 2, 2], PLAIN / [1, 2, 4, 8]
    check_tables(rope, np.stack([short, long, long]), lengths=(16, 17, 90), factor=1.25)
    assert rope.switch_length == 16


def test_partial_rotary_has_fewer_frequencies():
    cos, _ = Rope(theta=16.0, rotary_dim=4).cos_sin(jnp.asarray(POSITIONS), jnp.asarray(POSITIONS))
    np.testing.assert_allclose(cos, np.cos(POSITIONS[:, None] * np.array([1, 1 / 4])), atol=1e-5)


def test_shapes_are_checked_where_tests_run():
    positions = jnp.asarray(POSITIONS)
    with pytest.raises(TypeCheckError):
        Rope(theta=16.0, rotary_dim=8).cos_sin(positions, positions[:2])
