"""What a run begins with: its model, its parameters on the devices, and what is frozen beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

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
from ryzjax.training.start.adapter import continue_adapter, place, start_adapter, starting_weights
from ryzjax.training.start.initial import fresh_weights, master_shapes

__all__ = ["Beginning", "begin_adapter", "begin_from_scratch", "begin_full", "host_weights"]


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A model that is ready to be trained.

    Attributes:
      model: what is trained, and what is not.
      params, frozen: on the devices.
      initial: layer -> the update it begins with, where the adapter's beginning was taken out of the base (PiSSA,
        LoftQ); on the host.
    """

    model: LoraModel | FullModel
    params: dict
    frozen: Frozen
    initial: Mapping[str, LoraWeights] | None = None


def begin_adapter(
    opened: OpenModel, lora: LoraConfig, train: TrainConfig, *, adapter: str | None, show_progress: bool
) -> Beginning:
    """A frozen base and an adapter beside it.

    Args:
      adapter: folder of one to go on from, whose ranks and scales count; None for a fresh one.

    Raises:
      ConfigError: a target that the model does not have; a beginning that its weights do not allow; offload="frozen" on
        devices that cannot.
      CheckpointError: weights or adapter cannot be read.
    """
    given = None if adapter is None else read_adapter(Path(adapter).expanduser(), opened.model)
    if given is not None:
        lora = replace(given.config, dropout=lora.dropout, init="default")
    layers = lora.choose(opened.model.linears) if given is None else tuple(given.weights)
    if train.offload == "frozen":
        opened = replace(opened, plan=opened.plan.with_layers_on_host())
    weights = starting_weights(opened.plan, lora, show_progress=show_progress)
    start = start_adapter(opened.plan, lora, layers, weights, seed=train.seed)
    if given is not None:
        start.updates = continue_adapter(given, opened.model, name=str(adapter))
    model = LoraModel(
        stacked=StackedModel(opened.model),
        lora=lora,
        layers=layers,
        remat=train.remat,
        remat_layers=train.remat_layers,
        mlp_rows=train.mlp_rows,
    )
    initial = start.updates if start.changes_base else None
    params, frozen = place(model, start, weights)
    return Beginning(model=model, params=params, frozen=frozen, initial=initial)


def begin_full(opened: OpenModel, train: TrainConfig, *, show_progress: bool) -> Beginning:
    """Every weight of a checkpoint, as float32 masters; a copy as it is stored is kept where the objective reads it.

    Raises:
      ConfigError: a quantized model; offload="frozen".
      CheckpointError: weights cannot be read.
    """
    train.check_trains_all()
    if opened.model.quantization:
        raise ConfigError(
            "weights of a quantized model cannot be trained; train an adapter beside them, or give weights='bf16'"
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
    return Beginning(model=_full(stacked, train), params=params, frozen=Frozen(kept, {}))


def begin_from_scratch(model: AbstractModel, train: TrainConfig) -> Beginning:
    """Fresh weights.

    Raises:
      ConfigError: offload="frozen".
    """
    train.check_trains_all()
    stacked = StackedModel(model)
    return Beginning(model=_full(stacked, train), params=fresh_weights(stacked, train.seed), frozen=Frozen({}, {}))


def _full(stacked: StackedModel, train: TrainConfig) -> FullModel:
    return FullModel(stacked=stacked, remat=train.remat, remat_layers=train.remat_layers, mlp_rows=train.mlp_rows)


def _master(stored: jax.Array) -> jax.Array:
    return from_bits(stored).astype(jnp.float32)


def host_weights(
    stacked: StackedModel, params: Mapping[str, jax.Array], written: AbstractModel
) -> dict[str, np.ndarray]:
    """Our weight name -> masters rounded to the dtype they are written in, on the host."""
    return {
        name: np.asarray(jax.device_get(array)).astype(np.dtype(written.weights[name].dtype))
        for name, array in stacked.unstack(params)
    }
