"""TrainingStart: the model that a run trains, with its trained and frozen arrays on the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from ryzjax.bits import from_bits
from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.errors import ConfigError
from ryzjax.loading.open_model import OpenModel
from ryzjax.lora.adapter import LoraWeights
from ryzjax.lora.config import LoraConfig
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.stacked import StackedModel
from ryzjax.training.config import TrainConfig
from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.start.adapter_start import continued_updates, draw_adapter, load_base_weights, place_start
from ryzjax.training.start.random_weights import random_weights
from ryzjax.training.start.shapes import master_shapes

__all__ = ["TrainingStart", "start_from_scratch", "start_with_adapter", "start_with_all_weights"]


@dataclass(frozen=True, kw_only=True)
class TrainingStart:
    """A model that is ready to be trained.

    Attributes:
      model: The model; says what is trained and what is frozen.
      params: Trained arrays on the devices.
      frozen: Frozen arrays on the devices.
      start_updates: Layer -> the update that was subtracted from the base before training (PiSSA, LoftQ), on the host;
        None if the base was not changed.
    """

    model: LoraModel | FullModel
    params: dict
    frozen: Frozen
    start_updates: Mapping[str, LoraWeights] | None = None


def start_with_adapter(
    opened: OpenModel, lora: LoraConfig, train: TrainConfig, *, adapter: str | None, show_progress: bool
) -> TrainingStart:
    """Loads a frozen base and places an adapter beside it.

    Args:
      opened: The base model.
      lora: Settings of a new adapter.
      train: Settings of the run.
      adapter: Folder of an adapter to continue, which keeps its ranks and scales; None for a new adapter.
      show_progress: Show a progress bar on stderr.

    Raises:
      ConfigError: The model does not have a target layer, its weights do not allow the `init`, or the devices do not
        support `offload="frozen"`.
      CheckpointError: The weights or the adapter cannot be read.
    """
    given = None if adapter is None else read_adapter(Path(adapter).expanduser(), opened.model)
    if given is not None:
        lora = replace(given.config, dropout=lora.dropout, init="default")
    layers = lora.choose(opened.model.linears) if given is None else tuple(given.weights)
    if train.offload == "frozen":
        opened = replace(opened, plan=opened.plan.with_layers_on_host())
    weights = load_base_weights(opened.plan, lora, show_progress=show_progress)
    start = draw_adapter(opened.plan, lora, layers, weights, seed=train.seed)
    if given is not None:
        start.updates = continued_updates(given, opened.model, name=str(adapter))
    model = LoraModel(
        stacked=StackedModel(opened.model),
        lora=lora,
        layers=layers,
        remat=train.remat,
        remat_layers=train.remat_layers,
        mlp_rows=train.mlp_rows,
    )
    start_updates = start.updates if start.changes_base else None
    params, frozen = place_start(model, start, weights)
    return TrainingStart(model=model, params=params, frozen=frozen, start_updates=start_updates)


def start_with_all_weights(opened: OpenModel, train: TrainConfig, *, show_progress: bool) -> TrainingStart:
    """Loads every weight of a checkpoint as a float32 master. For DPO, the stored weights are kept as the frozen
    reference.

    Raises:
      ConfigError: The model is quantized, or `offload` is "frozen".
      CheckpointError: The weights cannot be read.
    """
    train.check_trains_all()
    if opened.model.quantization:
        raise ConfigError(
            "the weights of a quantized model cannot be trained; train an adapter, or load with weights='bf16'"
        )
    stacked = StackedModel(opened.model)
    weights = stacked.stack(opened.plan.load(show_progress=show_progress))
    params: dict[str, jax.Array] = {}
    kept: dict[str, jax.Array] = {}
    for name, shape in master_shapes(stacked).items():
        stored = weights.pop(name)
        params[name] = jax.jit(_master, out_shardings=shape.sharding)(stored)
        if train.objective == "dpo":
            kept[name] = stored
    return TrainingStart(model=_full(stacked, train), params=params, frozen=Frozen(kept, {}))


def start_from_scratch(model: AbstractModel, train: TrainConfig) -> TrainingStart:
    """Draws random weights for every layer of a model.

    Raises:
      ConfigError: `offload` is "frozen".
    """
    train.check_trains_all()
    stacked = StackedModel(model)
    return TrainingStart(model=_full(stacked, train), params=random_weights(stacked, train.seed), frozen=Frozen({}, {}))


def _full(stacked: StackedModel, train: TrainConfig) -> FullModel:
    return FullModel(stacked=stacked, remat=train.remat, remat_layers=train.remat_layers, mlp_rows=train.mlp_rows)


def _master(stored: jax.Array) -> jax.Array:
    return from_bits(stored).astype(jnp.float32)
