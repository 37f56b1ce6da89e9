"""Cross-entropy in chunks against all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.training.objectives.losses import summed_loss, token_log_probs

RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(21, 6)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, 11, 21), jnp.int32)
WEIGHTS = jnp.asarray(RNG.random(21) < 0.5, jnp.float32) * 0.5
TABLE = jnp.asarray(RNG.normal(size=(11, 6)), jnp.float32)
SCALE = jnp.asarray(RNG.normal(size=6), jnp.float32)


def head(trained: dict, frozen: jax.Array, hidden: jax.Array) -> jax.Array:
    return (hidden * trained["scale"]) @ frozen.T


def whole(hidden: jax.Array, trained: dict) -> jax.Array:
    logp = jax.nn.log_softmax(head(trained, TABLE, hidden), axis=-1)
    return -jnp.sum(jnp.take_along_axis(logp, TARGETS[:, None], axis=1)[:, 0] * WEIGHTS)


@pytest.mark.parametrize("chunk", [1, 4, 21, 64])
def test_sums_and_gradients(chunk: int) -> None:
    def ours(hidden: jax.Array, trained: dict) -> jax.Array:
        return 3.0 * summed_loss(head, trained, TABLE, hidden, TARGETS, WEIGHTS, chunk_tokens=chunk).loss

    trained = {"scale": SCALE}
    value, grads = jax.value_and_grad(ours, (0, 1))(HIDDEN, trained)
    expected, their_grads = jax.value_and_grad(lambda h, t: 3.0 * whole(h, t), (0, 1))(HIDDEN, trained)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads[0], their_grads[0], atol=1e-6)
    np.testing.assert_allclose(grads[1]["scale"], their_grads[1]["scale"], atol=1e-5)
    # The sum is the same without a gradient.
    np.testing.assert_allclose(jax.jit(ours)(HIDDEN, trained), expected, rtol=1e-6)


def test_tokens_that_do_not_count_may_be_anything() -> None:
    poisoned = jnp.where(WEIGHTS[:, None] > 0, HIDDEN, jnp.nan)

    def ours(hidden: jax.Array) -> jax.Array:
        return summed_loss(head, {"scale": SCALE}, TABLE, hidden, TARGETS, WEIGHTS, chunk_tokens=4).loss

    np.testing.assert_allclose(ours(poisoned), whole(HIDDEN, {"scale": SCALE}), rtol=1e-6)
    real = np.asarray(WEIGHTS > 0)
    np.testing.assert_array_equal(jax.grad(ours)(poisoned)[real], jax.grad(ours)(HIDDEN)[real])


def test_correct_counts_the_likeliest() -> None:
    best = jnp.argmax(head({"scale": SCALE}, TABLE, HIDDEN), axis=1).astype(jnp.int32)
    targets = best.at[0].set((best[0] + 1) % 11)
    ones = jnp.ones(21)
    assert summed_loss(head, {"scale": SCALE}, TABLE, HIDDEN, targets, ones, chunk_tokens=8).correct == 20


def test_token_log_probs_and_their_gradient() -> None:
    towards = jnp.asarray(RNG.normal(size=21), jnp.float32)

    def ours(hidden: jax.Array, trained: dict) -> jax.Array:
        return jnp.sum(token_log_probs(head, trained, TABLE, hidden, TARGETS, chunk_tokens=5) * towards)

    def theirs(hidden: jax.Array, trained: dict) -> jax.Array:
        logp = jax.nn.log_softmax(head(trained, TABLE, hidden), axis=-1)
        return jnp.sum(jnp.take_along_axis(logp, TARGETS[:, None], axis=1)[:, 0] * towards)

    mine = jax.value_and_grad(ours, (0, 1))(HIDDEN, {"scale": SCALE})
    other = jax.value_and_grad(theirs, (0, 1))(HIDDEN, {"scale": SCALE})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, other)
