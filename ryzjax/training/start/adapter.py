"""The adapter a run begins with, and what its base becomes: weights by layer, then stacked on the devices."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.loading.buffers import placed
from ryzjax.loading.weight_plan import WeightPlan
from ryzjax.lora.adapter import Adapter, LoraWeights, check_adapter
from ryzjax.lora.config import LoraConfig
from ryzjax.lora.init import Quantize, initial_weights
from ryzjax.lora.model import weight_of
from ryzjax.lora.norms import row_norms
from ryzjax.models.abstract import AbstractModel
from ryzjax.qarray import LEAVES, QArray, QFormat
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.sharding.host_memory import to_device
from ryzjax.training.model import AdapterParams, Frozen, LoraModel
from ryzjax.training.start.initial import place_adapter

__all__ = ["AdapterStart", "start_adapter", "starting_weights"]


class AdapterStart:
    """What a run over a frozen base begins with.

    Attributes:
      updates: layer -> its update, on the host.
      row_norms: of DoRA: layer -> |W| of each row, on the host.
      changes_base: whether the base is no longer the model's: PiSSA and LoftQ.
    """

    def __init__(self, config: LoraConfig) -> None:
        self.updates: dict[str, LoraWeights] = {}
        self.row_norms: dict[str, np.ndarray] = {}
        self.changes_base = config.init in ("pissa", "loftq")


def starting_weights(plan: WeightPlan, config: LoraConfig, *, show_progress: bool) -> dict[str, jax.Array]:
    """The base's weights by name: as they will run, or, where the adapter's start is made from them, as stored.

    Raises:
      ConfigError: "loftq" of a checkpoint that is quantized already or is not to be.
    """
    if config.init == "loftq" and (plan.stored.quantization or plan.model is plan.stored):
        raise ConfigError(
            "LoRA init='loftq' makes up for what rounding loses: it needs a plain checkpoint and weights='int8', "
            "'int4' or 'nf4'; take init='default' or 'pissa' here"
        )
    if config.init in ("pissa", "loftq"):
        plan = replace(plan, model=plan.stored)
    return plan.load(show_progress=show_progress)


def start_adapter(
    plan: WeightPlan, config: LoraConfig, layers: tuple[str, ...], weights: dict[str, jax.Array], *, seed: int
) -> AdapterStart:
    """Draws the updates, layer by layer, and changes `weights` where the base changes.

    Args:
      plan: of the weights; those of `starting_weights` are rounded here where they were not.
      layers: to adapt.
      weights: by name, as `starting_weights` gives them; afterwards those of `plan.model`.
      seed: of the draw.
    """
    start = AdapterStart(config)
    key = jax.random.PRNGKey(seed)
    source, model = plan.stored if start.changes_base else plan.model, plan.model
    for layer in layers:
        quantize = _rounding(model, layer)
        begin = initial_weights(config, layer, _weight(source, weights, layer, config), key, quantize)
        if begin.base is not None:
            _replace(model, weights, layer, begin.base)
        start.updates[layer] = jax.device_get(begin.update)
    if start.changes_base and model is not source:
        _round_the_rest(model, weights)
    if config.use_dora:
        for layer in layers:
            start.row_norms[layer] = np.asarray(row_norms(_on_device(weight_of(model, weights, layer))))
    return start


def place(model: LoraModel, start: AdapterStart, weights: dict[str, jax.Array]) -> tuple[AdapterParams, Frozen]:
    """(parameters, what is frozen) on the devices; takes the arrays out of `weights`."""
    params = place_adapter(model, start.updates)
    norms: dict[str, dict[str, jax.Array]] = {}
    if start.row_norms:
        as_updates = {
            layer: LoraWeights(a=norm, b=norm)  # pyright: ignore[reportArgumentType]
            for layer, norm in start.row_norms.items()
        }
        for name, updates in model.stack_adapter(as_updates).items():
            magnitudes = {path: params[name][path].magnitude for path in updates}
            norms[name] = {
                path: jax.device_put(update.a, magnitudes[path].sharding)  # pyright: ignore
                for path, update in updates.items()
            }
    return params, Frozen(model.stacked.stack(weights), norms)


def continue_adapter(adapter: Adapter, model: AbstractModel, *, name: str) -> dict[str, LoraWeights]:
    """The updates of an adapter that is trained on, on the host.

    Raises:
      ConfigError: it does not fit the model.
    """
    check_adapter(adapter, model.linears, name=name)
    return {layer: jax.device_get(update) for layer, update in adapter.weights.items()}


def _weight(
    model: AbstractModel, weights: dict[str, jax.Array], layer: str, config: LoraConfig
) -> jax.Array | QArray | jax.ShapeDtypeStruct:
    if config.init in ("default", "gaussian") and not config.use_dora:
        return jax.ShapeDtypeStruct(model.linears[layer], np.float32)
    return _on_device(weight_of(model, weights, layer))


def _on_device(weight: jax.Array | QArray) -> jax.Array | QArray:
    """One matrix, of a base that may lie on the host, to be computed with."""
    return to_device(weight)  # pyright: ignore[reportReturnType]


def _rounding(model: AbstractModel, layer: str) -> Quantize | None:
    format = model.quantization.get(layer)
    return None if format is None else partial(_round, layer, format)


def _round(layer: str, format: QFormat, w: jax.Array) -> QArray:
    return quantize_matrix(layer, w, format)


def _replace(model: AbstractModel, weights: dict[str, jax.Array], layer: str, base: jax.Array | QArray) -> None:
    if isinstance(base, QArray):
        weights.pop(f"{layer}.weight", None)
        for leaf in LEAVES:
            if (part := getattr(base, leaf)) is not None:
                name = f"{layer}.weight.{leaf}"
                weights[name] = placed(np.asarray(part), model.weights[name].sharding)
    else:
        weights[f"{layer}.weight"] = jax.device_put(base, model.weights[f"{layer}.weight"].sharding)


def _round_the_rest(model: AbstractModel, weights: dict[str, jax.Array]) -> None:
    """Rounds what is to be quantized and no update was made for."""
    for layer, format in model.quantization.items():
        if f"{layer}.weight" in weights:
            _replace(model, weights, layer, quantize_matrix(layer, weights[f"{layer}.weight"], format))
