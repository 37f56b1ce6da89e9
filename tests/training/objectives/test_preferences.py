"""DPO and ORPO against losses computed from all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.training.model import Frozen
from ryzjax.training.objectives.make_objective import make_objective
from tests.training.gradients import assert_close, loss_and_grads
from tests.training.models import batch_of, full_model, lora_model


def row_log_probs(model, params, frozen, batch) -> np.ndarray:
    """Returns the sum of log p over the tokens of each row that count, from all logits at once."""
    hidden = jax.jit(lambda p: model.hidden(p, frozen, batch.segments, None))(params)
    logits = model.logits(model.head_params(params), frozen, hidden)
    logp = jax.nn.log_softmax(logits, axis=-1).reshape(*batch.targets.shape, -1)
    chosen = jnp.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
    return np.asarray(jnp.sum(chosen * batch.loss_weights, axis=1))


def test_dpo_by_hand() -> None:
    model, params, frozen = lora_model()
    batch = batch_of(rows=4)
    objective = make_objective("dpo", chunk_tokens=16, beta=0.3, label_smoothing=0.1)
    policy, reference = row_log_probs(model, params, frozen, batch), row_log_probs(model, {}, frozen, batch)
    margin = 0.3 * ((policy - reference)[0::2] - (policy - reference)[1::2])
    expected = np.mean(0.9 * np.log1p(np.exp(-margin)) + 0.1 * np.log1p(np.exp(margin)))
    loss, grads = loss_and_grads(model, params, frozen, batch, objective)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert objective.count(batch) == 2
    sums = objective.sums(model, params, frozen, batch, None)
    np.testing.assert_allclose(sums.details["margin"], margin.sum(), rtol=1e-3)
    # A step against the gradient increases the margin.
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    assert loss_and_grads(model, moved, frozen, batch, objective)[0] < loss


def test_dpo_of_all_weights_is_against_those_of_the_start() -> None:
    model, params = full_model()
    objective = make_objective("dpo", chunk_tokens=16)
    frozen = Frozen(params, {})
    loss, _ = loss_and_grads(model, params, frozen, batch_of(), objective)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)


def test_orpo_by_hand() -> None:
    model, params, frozen = lora_model()
    batch = batch_of(rows=4)
    objective = make_objective("orpo", chunk_tokens=16, beta=0.2)
    mean = row_log_probs(model, params, frozen, batch) / np.asarray(batch.loss_weights.sum(axis=1))
    odds = mean - np.log(1 - np.exp(mean))
    expected = np.mean(-mean[0::2] + 0.2 * np.log1p(np.exp(-(odds[0::2] - odds[1::2]))))
    np.testing.assert_allclose(loss_and_grads(model, params, frozen, batch, objective)[0], expected, rtol=1e-4)


def test_pairs_that_fill_a_batch_up_do_not_count() -> None:
    model, params, frozen = lora_model()
    batch = batch_of(rows=4)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:2])]), batch)
    for name in ("dpo", "orpo"):
        objective = make_objective(name, chunk_tokens=16)
        short = loss_and_grads(model, params, frozen, batch, objective)
        assert_close(loss_and_grads(model, params, frozen, padded, objective), short)
