"""The adapter that a run starts from, and the base it belongs to.

Updates are drawn layer by layer on the host, then stacked and placed on the devices. PiSSA and LoftQ also change the
base.
"""

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
from ryzjax.training.start.shapes import place_adapter

__all__ = ["AdapterStart", "continued_updates", "draw_adapter", "load_base_weights", "place_start"]


class AdapterStart:
    """The start of an adapter, on the host.

    Attributes:
      updates: Layer -> its update.
      row_norms: For DoRA: layer -> norm of each row of its weight. Empty otherwise.
      changes_base: Whether the `init` changes the base weights (PiSSA and LoftQ).
    """

    def __init__(self, config: LoraConfig) -> None:
        self.updates: dict[str, LoraWeights] = {}
        self.row_norms: dict[str, np.ndarray] = {}
        self.changes_base = config.init in ("pissa", "loftq")


def load_base_weights(plan: WeightPlan, config: LoraConfig, *, show_progress: bool) -> dict[str, jax.Array]:
    """Loads the base weights by name: in the format they run in or, if the `init` is computed from them, as stored.

    Raises:
      ConfigError: `init` is "loftq" and the checkpoint is quantized already or will not be quantized.
    """
    if config.init == "loftq" and (plan.stored.quantization or plan.model is plan.stored):
        raise ConfigError(
            "LoRA init='loftq' compensates for the error of quantization: it needs a plain checkpoint and "
            "weights='int8', 'int4' or 'nf4'; use init='default' or 'pissa' here"
        )
    if config.init in ("pissa", "loftq"):
        plan = replace(plan, model=plan.stored)
    return plan.load(show_progress=show_progress)


def draw_adapter(
    plan: WeightPlan, config: LoraConfig, layers: tuple[str, ...], weights: dict[str, jax.Array], *, seed: int
) -> AdapterStart:
    """Draws the updates layer by layer, and replaces the weights of the base that the `init` changes.

    Args:
      plan: How the weights are loaded.
      config: The adapter's settings.
      layers: Layers to adapt.
      weights: What `load_base_weights` returned. Changed in place to the weights of `plan.model`, quantized if they
        were not yet.
      seed: Seed of the draw.
    """
    start = AdapterStart(config)
    key = jax.random.PRNGKey(seed)
    source, model = plan.stored if start.changes_base else plan.model, plan.model
    for layer in layers:
        quantize = _quantizer(model, layer)
        drawn = initial_weights(config, layer, _weight(source, weights, layer, config), key, quantize)
        if drawn.base is not None:
            _replace(model, weights, layer, drawn.base)
        start.updates[layer] = jax.device_get(drawn.update)
    if start.changes_base and model is not source:
        _quantize_the_rest(model, weights)
    if config.use_dora:
        for layer in layers:
            start.row_norms[layer] = np.asarray(row_norms(_on_device(weight_of(model, weights, layer))))
    return start


def place_start(model: LoraModel, start: AdapterStart, weights: dict[str, jax.Array]) -> tuple[AdapterParams, Frozen]:
    """Returns the parameters and the frozen arrays on the devices. Removes the arrays from `weights`."""
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


def continued_updates(adapter: Adapter, model: AbstractModel, *, name: str) -> dict[str, LoraWeights]:
    """Returns the updates of an adapter whose training is continued, on the host.

    Raises:
      ConfigError: The adapter does not fit the model.
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
    """Returns a matrix on the device. The base may lie in host memory."""
    return to_device(weight)  # pyright: ignore[reportReturnType]


def _quantizer(model: AbstractModel, layer: str) -> Quantize | None:
    format = model.quantization.get(layer)
    return None if format is None else partial(_quantize, layer, format)


def _quantize(layer: str, format: QFormat, w: jax.Array) -> QArray:
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


def _quantize_the_rest(model: AbstractModel, weights: dict[str, jax.Array]) -> None:
    """Quantizes the matrices that must be quantized and have no adapter."""
    for layer, format in model.quantization.items():
        if f"{layer}.weight" in weights:
            _replace(model, weights, layer, quantize_matrix(layer, weights[f"{layer}.weight"], format))
