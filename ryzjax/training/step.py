"""The train step and the evaluation step: pure functions of parameters, frozen weights and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.objective import Objective
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.optimizers.gradients import global_norm

__all__ = ["EvalSums", "TrainState", "TrainStep", "make_eval_step", "make_train_step"]

PyTree = dict


class TrainState(NamedTuple):
    """The arrays that a step changes. They are donated to the step.

    Attributes:
      params: float32 masters of what is trained.
      optimizer: The optimizer's state.
      step: int32 scalar, the number of updates done.
    """

    params: PyTree
    optimizer: optax.OptState
    step: Int[Array, ""]


class EvalSums(NamedTuple):
    """Sums over one batch of an evaluation.

    Attributes:
      loss: Sum of the loss.
      details: Sums of the objective's details.
      count: Number of tokens or pairs to divide the sums by.
    """

    loss: Float[Array, ""]
    details: dict[str, Float[Array, ""]]
    count: Float[Array, ""]


TrainStep = Callable[[TrainState, Frozen, StepBatch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: LoraModel | FullModel, objective: Objective, optimizer: optax.GradientTransformation
) -> TrainStep:
    """Returns step(state, frozen, batch, key) -> (state, metrics), to be jitted with the state donated.

    The batch is [parts, rows, S]. The parts are computed sequentially, their gradients are summed (gradient
    accumulation), and the sum is divided by the count of all parts. A batch in parts therefore has the gradient of the
    whole batch. `key` belongs to the run; a step's dropout depends on it and on the step's number.

    A step whose loss or gradient is not finite leaves the state unchanged and reports `finite` = 0.

    The metrics are float32 scalars: loss, grad_norm, finite, count, and the objective's details.
    """

    def step(
        state: TrainState, frozen: Frozen, batch: StepBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(key, state.step)
        count = jnp.sum(jax.vmap(objective.count)(batch))
        scale = 1.0 / jnp.maximum(count, 1.0)

        def gradients(part: StepBatch, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
            def loss(params: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
                sums = objective.sums(model, params, frozen, part, key)
                return sums.loss * scale, {"loss": sums.loss, **sums.details}

            return model.gradients(loss, state.params)

        parts = batch.token_ids.shape[0]
        if parts == 1:
            grads, sums = gradients(jax.tree.map(lambda x: x[0], batch), step_key)
        else:
            grads, sums = _accumulate(gradients, batch, jax.random.split(step_key, parts))
        grad_norm = global_norm(grads)
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm)

        def update(grads: PyTree, before: TrainState) -> TrainState:
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            updates, optimizer_state = optimizer.update(grads, before.optimizer, before.params)
            params = optax.apply_updates(before.params, updates)
            return TrainState(params, optimizer_state, before.step + 1)  # pyright: ignore[reportArgumentType]

        # The branch is also a barrier: without it XLA decodes the optimizer's states before the backward pass.
        new = lax.cond(finite, update, lambda grads, before: before, grads, state)
        metrics = {name: total * scale for name, total in sums.items()}
        return new, {**metrics, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32), "count": count}

    return step


def _accumulate(
    gradients: Callable[[StepBatch, jax.Array], tuple[PyTree, dict[str, jax.Array]]],
    batch: StepBatch,
    keys: jax.Array,
) -> tuple[PyTree, dict[str, jax.Array]]:
    """Sums gradients and losses over the parts of a batch."""

    def add(total: tuple, part: tuple[StepBatch, jax.Array]) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    first = jax.tree.map(lambda x: x[0], (batch, keys))
    shapes = jax.eval_shape(gradients, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
    return lax.scan(add, zeros, (batch, keys))[0]


def make_eval_step(
    model: LoraModel | FullModel, objective: Objective
) -> Callable[[PyTree, Frozen, StepBatch], EvalSums]:
    """Returns evaluate(params, frozen, batch [rows, S]) -> sums, without dropout or gradients."""

    def evaluate(params: PyTree, frozen: Frozen, batch: StepBatch) -> EvalSums:
        sums = objective.sums(model, params, frozen, batch, None)
        return EvalSums(sums.loss, sums.details, objective.count(batch))

    return evaluate
