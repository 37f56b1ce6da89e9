"""The scan over layers: its own backward pass against that of a plain one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.models.scan_layers import Received, scan_layers

COUNT, WIDTH = 6, 8

pytestmark = pytest.mark.optimized


def mix(x: jax.Array, own: dict, rest: dict, shared: jax.Array) -> jax.Array:
    return x + jnp.tanh(x @ own["mix"].astype(x.dtype)) * shared


def bend(x: jax.Array, own: dict, rest: dict, shared: jax.Array) -> jax.Array:
    return x + rest["bend"].astype(x.dtype) * jnp.sin(x * own["gain"].astype(x.dtype))


def arrays(dtype: str):
    rng = np.random.default_rng(0)
    trained = {
        "mix": jnp.asarray(rng.normal(size=(COUNT, WIDTH, WIDTH)) * 0.3, jnp.float32),
        "gain": jnp.asarray(rng.normal(size=(COUNT, WIDTH)), jnp.float32),
    }
    frozen = {"bend": jnp.asarray(rng.normal(size=(COUNT, WIDTH)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(5, WIDTH)), dtype)
    return x, trained, frozen, jnp.asarray(0.5, dtype)


def loss(x: jax.Array, trained: object, frozen: dict, shared: jax.Array, **options: object) -> jax.Array:
    out = scan_layers([mix, bend], x, trained, frozen, shared, **options)  # pyright: ignore
    return jnp.sum(jnp.square(out.astype(jnp.float32)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat_layers", [1, 2, 4, 6])
def test_gradients_are_those_of_a_plain_scan(remat_layers: int, dtype: str):
    x, trained, frozen, shared = arrays(dtype)
    plain = jax.jit(jax.value_and_grad(partial(loss, remat="none"), argnums=(0, 1)))
    ours = jax.jit(jax.value_and_grad(partial(loss, remat="full", remat_layers=remat_layers), argnums=(0, 1)))
    # A layer computed again is rounded to bfloat16 where XLA had fused it before.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    jax.tree.map(
        partial(np.testing.assert_allclose, **close),
        ours(x, trained, frozen, shared),
        plain(x, trained, frozen, shared),
    )


@pytest.mark.parametrize("remat_layers", [1, 3])
def test_received_gradients_are_the_same_rounded(remat_layers: int):
    x, trained, frozen, shared = arrays("float32")
    full = partial(loss, remat="full", remat_layers=remat_layers)
    receivers = {"mix": jnp.zeros_like(trained["mix"], jnp.bfloat16), "gain": jnp.full_like(trained["gain"], jnp.nan)}

    def received(receivers: dict) -> jax.Array:
        return full(x, Received(trained, receivers), frozen, shared)

    got = jax.jit(jax.grad(received))(receivers)
    want = jax.jit(jax.grad(full, argnums=1))(x, trained, frozen, shared)
    assert got["mix"].dtype == jnp.bfloat16 and got["gain"].dtype == jnp.float32
    np.testing.assert_array_equal(got["mix"], want["mix"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(got["gain"], want["gain"])


def test_of_a_bfloat16_layer_nothing_is_lost():
    """Masters are rounded inside a layer, so the gradient of each matrix is a bfloat16 number already."""
    x, trained, frozen, shared = arrays("bfloat16")
    grads = jax.jit(jax.grad(partial(loss, remat="full", remat_layers=2), argnums=1))(x, trained, frozen, shared)
    np.testing.assert_array_equal(grads["mix"], grads["mix"].astype(jnp.bfloat16).astype(jnp.float32))
