"""Gradients of an objective, and their comparison."""

from __future__ import annotations

import jax
import numpy as np

from ryzjax.training.objectives.objective import Objective

__all__ = ["assert_close", "loss_and_grads"]


def loss_and_grads(model, params, frozen, batch, objective: Objective):
    """Returns the mean loss of a batch and its gradients."""

    def loss(params: dict) -> jax.Array:
        return objective.sums(model, params, frozen, batch, None).loss / objective.count(batch)

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_close(ours: object, theirs: object, *, atol: float = 1e-5) -> None:
    """Compares two pytrees, leaf by leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), ours, theirs)
