"""route_top_k, grouped_matmul and the gates against hand-worked numbers and plain numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.bits import from_bits, storage_dtype, to_bits
from ryzjax.layers.glu import GLU, ClampedSwiGLU
from ryzjax.ops.moe.grouped_matmul import grouped_matmul
from ryzjax.ops.moe.routing import Routing, route_top_k


@pytest.mark.parametrize(
    ("routing", "expected"),
    # Scores of 0, ln 2 and ln 5 have the softmax 1/8, 2/8, 5/8.
    [("softmax", [5 / 8, 2 / 8]), ("softmax_normalized", [5 / 7, 2 / 7]), ("softmax_of_top", [5 / 7, 2 / 7])],
)
def test_routing_by_hand(routing: Routing, expected: list[float]):
    weights, ids = route_top_k(jnp.log(jnp.array([[1.0, 2.0, 5.0]])), 2, routing=routing)
    assert ids.tolist() == [[2, 1]]
    np.testing.assert_allclose(weights, [expected], rtol=1e-6)


SIZES = {
    "some empty": [3, 0, 17, 1, 0],
    "one has all": [0, 0, 40, 0, 0],
    "nothing at all": [0, 0, 0, 0, 0],
    "many rows": [100, 3, 200, 60, 41],
    "rows of no group": [2, 2, 2, 2, 2],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", SIZES)
def test_groups_by_numpy(name: str, dtype: jnp.dtype):
    sizes = SIZES[name]
    rows = sum(sizes) + (7 if name == "rows of no group" else 0) or 4
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, 24)), dtype)
    weight = jnp.asarray(rng.standard_normal((5, 10, 24)), dtype)
    stored = to_bits(weight, storage_dtype(dtype))
    outs = [jax.jit(f)(x, stored, jnp.array(sizes, jnp.int32)) for f in (grouped_matmul, grouped_matmul.reference)]
    group = np.repeat(np.arange(5), sizes)
    exact = np.einsum("mk,mnk->mn", np.asarray(x, np.float64)[: len(group)], np.asarray(weight, np.float64)[group])
    for out in outs:
        assert out.dtype == jnp.float32 and out.shape == (rows, 10)
        np.testing.assert_allclose(out[: len(group)], exact, atol=1e-4)
        assert np.isfinite(out).all()


def test_only_the_experts_that_are_hit_are_read():
    weight = jnp.full((4, 8, 8), jnp.nan).at[2].set(1.0)
    out = jax.jit(grouped_matmul)(jnp.ones((5, 8)), weight, jnp.array([0, 0, 5, 0]))
    np.testing.assert_array_equal(out, np.full((5, 8), 8.0))


def test_bits_are_the_values():
    x = jnp.array([1.5, -2.0, 3e38], jnp.bfloat16)
    stored = to_bits(x, storage_dtype(x.dtype))
    assert stored.dtype == jnp.uint16 and int(stored[0]) == 0x3FC0
    np.testing.assert_array_equal(from_bits(stored), x)
    assert storage_dtype(jnp.float32) == jnp.float32 and from_bits(jnp.ones(2)).dtype == jnp.float32


def test_gates_by_hand():
    gate, up = jnp.array([0.0, 1.0, 9.0]), jnp.array([2.0, 3.0, -9.0])
    np.testing.assert_allclose(GLU("silu")(gate, up)[1], 3 / (1 + np.exp(-1)), rtol=1e-6)
    # Clamped at 2, the last gate is 2 and the last up -2.
    expected = [0.0, 4 / (1 + np.exp(-0.5)), -2 / (1 + np.exp(-1.0))]
    np.testing.assert_allclose(
        ClampedSwiGLU(alpha=0.5, limit=2.0)(gate, jnp.array([2.0, 3.0, -9.0])),
        [0.0, 3 / (1 + np.exp(-0.5)), expected[2]],
        rtol=1e-6,
    )
