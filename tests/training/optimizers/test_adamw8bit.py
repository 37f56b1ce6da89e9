"""Adam with 8-bit states against Adam in float32: the same losses, close trajectories, a quarter of the memory."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ryzjax.training.optimizers.adamw8bit as adamw8bit
from ryzjax.training.optimizers.adamw8bit import scale_by_adam_8bit
from ryzjax.training.optimizers.block_code import BlockCoded

Tree = dict[str, jax.Array]


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """optax mixes integer counts with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network(seed: int = 0) -> Tree:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "in": jax.random.normal(keys[0], (128, 32)) * 32**-0.5,
        "hidden": jax.random.normal(keys[1], (2, 128, 128)) * 128**-0.5,
        "out": jax.random.normal(keys[2], (10, 128)) * 128**-0.5,
        "bias": jnp.zeros(10),
    }


def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
    h = jax.nn.gelu(x @ params["in"].T)
    for layer in range(2):
        h = h + jax.nn.gelu(h @ params["hidden"][layer].T)
    logits = h @ params["out"].T + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(direction: optax.GradientTransformation, steps: int = 150) -> tuple[list[float], Tree, optax.OptState]:
    """Trains a small classifier of clusters. The batches come in the same order for every optimizer."""
    optimizer = optax.chain(direction, optax.add_decayed_weights(0.01), optax.scale_by_learning_rate(2e-3))
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(10, 32))
    labels = rng.integers(0, 10, (steps, 64))
    inputs = (centres[labels] + 1.5 * rng.normal(size=(steps, 64, 32))).astype(np.float32)
    params = network()
    state = optimizer.init(params)

    @jax.jit
    def run(params: Tree, state: optax.OptState):
        def step(carry, batch):
            value, gradient = jax.value_and_grad(loss)(carry[0], *batch)
            updates, state = optimizer.update(gradient, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), value

        return jax.lax.scan(step, (params, state), (inputs, labels))

    (params, state), losses = run(params, state)
    return np.asarray(losses).tolist(), params, state


def test_it_trains_as_float32_does():
    full, full_params, _ = train(optax.scale_by_adam())
    coded, coded_params, _ = train(scale_by_adam_8bit())
    assert full[0] == coded[0] and np.mean(full[-20:]) < 0.3 * full[0]
    assert np.mean(coded[-20:]) == pytest.approx(np.mean(full[-20:]), rel=0.05)
    start = network()
    for name in ("in", "hidden"):
        moved = np.linalg.norm(full_params[name] - start[name])
        apart = np.linalg.norm(full_params[name] - coded_params[name])
        # Two float32 runs with other betas or seeds diverge by more than they move. The 8-bit run stays close.
        assert 0 < apart < 0.3 * moved, name


def test_the_first_update_is_that_of_adam():
    params = network()
    gradient = jax.tree.map(lambda p: jnp.sin(7 * p), params)
    coded, full = (d.update(gradient, d.init(params))[0] for d in (scale_by_adam_8bit(), optax.scale_by_adam()))
    for name in params:
        np.testing.assert_allclose(coded[name], full[name], rtol=1e-5, atol=1e-6)


def test_bytes_of_a_state():
    params = {
        "a": jax.ShapeDtypeStruct((32, 8, 4096), jnp.float32),
        "b": jax.ShapeDtypeStruct((32, 4096, 8), jnp.float32),
        "w": jax.ShapeDtypeStruct((4, 1000, 300), jnp.float32),
    }
    state = jax.eval_shape(scale_by_adam_8bit().init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.mu, state.root_nu)))
    assert size <= 2.04 * sum(leaf.size for leaf in params.values())
    # Codes have the shape and the sharding of their parameter.
    assert state.mu["b"].codes.shape == (32, 4096, 8) and state.mu["b"].scales.shape == (32, 128)
    assert state.mu["a"].scales.shape == (32, 8, 16)


def test_small_leaves_stay_in_float32():
    state = scale_by_adam_8bit().init(network())
    assert isinstance(state.mu["hidden"], BlockCoded) and isinstance(state.mu["in"], BlockCoded)
    assert state.mu["out"].dtype == jnp.float32 and state.root_nu["bias"].dtype == jnp.float32


def test_layer_by_layer_is_the_same(monkeypatch: pytest.MonkeyPatch):
    params = {"w": jax.random.normal(jax.random.key(0), (3, 64, 40)), "v": jnp.ones((2, 2, 4, 512))}
    gradients = [jax.tree.map(lambda p, k=k: jnp.cos(k * p), params) for k in (3.0, 5.0)]
    results = []
    for limit in (1 << 22, 0):
        monkeypatch.setattr(adamw8bit, "_WHOLE_ELEMENTS", limit)
        direction = scale_by_adam_8bit()
        state, update = direction.init(params), None
        for gradient in gradients:
            update, state = jax.jit(direction.update)(gradient, state)
        results.append((update, state))
    # XLA may fuse multiplications with additions in one program and not in the other.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_temporaries_are_those_of_a_layer():
    layers, layer = 16, 1024 * 1024
    params = {"w": jax.ShapeDtypeStruct((layers, 1024, 1024), jnp.float32)}
    direction = scale_by_adam_8bit()
    state = jax.eval_shape(direction.init, params)
    compiled = jax.jit(direction.update, donate_argnums=1).lower(params, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 4 * layer
