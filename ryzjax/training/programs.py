"""Programs: the compiled programs of a run, made from shapes alone, and the shapes and shardings of their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import optax

from ryzjax.batch import SegmentBatch
from ryzjax.models.stacked import StackedModel
from ryzjax.sharding import Placement
from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.dpo import DPO
from ryzjax.training.objectives.objective import Objective
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.optimizers.sharding import optimizer_shardings
from ryzjax.training.start.shapes import adapter_shapes, master_shapes
from ryzjax.training.step import TrainState, make_eval_step, make_train_step

__all__ = ["Programs", "frozen_shapes"]


def frozen_shapes(model: LoraModel | FullModel, objective: Objective) -> Frozen:
    """Returns the frozen arrays of a run, as shapes with shardings."""
    reads_weights = isinstance(model, LoraModel) or isinstance(objective, DPO)
    weights = _weight_shapes(model.stacked) if reads_weights else {}
    norms: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    if isinstance(model, LoraModel) and model.lora.use_dora:
        for name, updates in adapter_shapes(model).items():
            norms[name] = {path: update.magnitude for path, update in updates.items()}  # pyright: ignore
    return Frozen(weights, norms)  # pyright: ignore[reportArgumentType]


def _weight_shapes(stacked: StackedModel) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(spec.shape, spec.stored_dtype, sharding=spec.sharding)
        for name, spec in stacked.weights.items()
    }


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The train and evaluation programs of a run, and what they take.

    Attributes:
      model: The model.
      objective: The loss.
      optimizer: The optimizer.
      rows: Rows of a batch that is computed at once.
      sequence_tokens: Tokens of a row.
      accumulate: Batches per update.
    """

    model: LoraModel | FullModel
    objective: Objective
    optimizer: optax.GradientTransformation
    rows: int
    sequence_tokens: int
    accumulate: int

    @property
    def placement(self) -> Placement:
        """The model's placement."""
        return self.model.model.placement

    @cached_property
    def params(self) -> dict:
        """What is trained, as shapes with shardings."""
        if isinstance(self.model, LoraModel):
            return adapter_shapes(self.model)
        return master_shapes(self.model.stacked)

    @cached_property
    def state(self) -> TrainState:
        """The state of a step, as shapes with shardings."""
        replicated = self.placement.replicated
        shardings = optimizer_shardings(self.optimizer, self.params, replicated=replicated)
        shapes = jax.eval_shape(self.optimizer.init, self.params)
        optimizer = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
        return TrainState(self.params, optimizer, step)  # pyright: ignore[reportArgumentType]

    @cached_property
    def frozen(self) -> Frozen:
        """The frozen arrays, as shapes with shardings."""
        return frozen_shapes(self.model, self.objective)

    @property
    def batch(self) -> StepBatch:
        """The batch of an update, [accumulate, rows, S], as shapes with shardings."""
        return self._batch((self.accumulate, self.rows, self.sequence_tokens))

    @property
    def eval_batch(self) -> StepBatch:
        """The batch of an evaluation, [rows, S], as shapes with shardings."""
        return self._batch((self.rows, self.sequence_tokens))

    def start(self, params: dict) -> TrainState:
        """Returns the state before the first step. The optimizer's state is created in its sharding."""
        shardings = jax.tree.map(lambda shape: shape.sharding, self.state.optimizer)
        optimizer = jax.jit(self.optimizer.init, out_shardings=shardings)(params)
        step = jax.device_put(jnp.zeros((), jnp.int32), self.placement.replicated)
        return TrainState(params, optimizer, step)

    def compile_train(self) -> jax.stages.Compiled:
        """Compiles (state, frozen, batch, key) -> (state, metrics)."""
        return self.trace_train().lower().compile()

    def trace_train(self) -> jax.stages.Traced:
        """Traces the train step, to be lowered for any platform."""
        step = make_train_step(self.model, self.objective, self.optimizer)
        out = jax.tree.map(lambda shape: shape.sharding, self.state), self.placement.replicated
        jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
        return jitted.trace(self.state, self.frozen, self.batch, self._key)

    def compile_eval(self) -> jax.stages.Compiled:
        """Compiles (params, frozen, batch [rows, S]) -> EvalSums."""
        evaluate = make_eval_step(self.model, self.objective)
        jitted = jax.jit(evaluate, out_shardings=self.placement.replicated)
        return jitted.lower(self.params, self.frozen, self.eval_batch).compile()

    @property
    def _key(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=self.placement.replicated)

    def _batch(self, shape: tuple[int, ...]) -> StepBatch:
        axes = (None,) * (len(shape) - 2) + ("tokens", None)
        array = partial(jax.ShapeDtypeStruct, shape, sharding=self.placement.sharding(axes, shape))
        integers = SegmentBatch(*(array(jnp.int32) for _ in range(3)))  # pyright: ignore[reportArgumentType]
        return StepBatch(*integers, targets=array(jnp.int32), loss_weights=array(jnp.float32))  # pyright: ignore
