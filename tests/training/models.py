"""A tiny model that is ready for training, and batches for it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.loading.dummy import dummy_weights
from ryzjax.lora.config import LoraConfig
from ryzjax.lora.init import initial_weights
from ryzjax.lora.model import weight_of
from ryzjax.lora.norms import row_norms
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.models.stacked import StackedModel
from ryzjax.qarray import QFormat
from ryzjax.sharding import Placement
from ryzjax.training.model import Frozen, FullModel, LoraModel
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.start.shapes import master_shapes, place_adapter
from tests.evaluation.models import ONE
from tests.models.configs import CONFIGS

__all__ = ["CONFIG", "batch_of", "full_model", "lora_model"]

CONFIG = CONFIGS["qwen3"]


def _weights(
    config: ModelConfig, placement: Placement, formats: dict[str, QFormat] | None
) -> tuple[StackedModel, dict[str, jax.Array]]:
    model = abstract_model(config, placement, formats)
    weights = dummy_weights(model.weights, 0)
    grown = {
        name: array if "norm" in name or not jnp.issubdtype(array.dtype, jnp.floating) else array * 12
        for name, array in weights.items()
    }
    return StackedModel(model), grown


def lora_model(
    lora: LoraConfig | None = None,
    *,
    config: ModelConfig = CONFIG,
    placement: Placement = ONE,
    formats: dict[str, QFormat] | None = None,
    **options: object,
) -> tuple[LoraModel, dict, Frozen]:
    """Returns a model, its parameters (with B filled, so that the adapter has an effect) and its frozen arrays."""
    lora = lora or LoraConfig(rank=4, alpha=8)
    stacked, weights = _weights(config, placement, formats)
    model = LoraModel(
        stacked=stacked,
        lora=lora,
        layers=lora.choose(stacked.model.linears),
        **({"remat": "none"} | options),  # pyright: ignore
    )
    rng = np.random.default_rng(1)
    updates, norms = {}, {}
    for layer in model.layers:
        matrix = weight_of(stacked.model, weights, layer)
        update = initial_weights(lora, layer, matrix, jax.random.PRNGKey(0)).update
        updates[layer] = dataclasses.replace(update, b=jnp.asarray(rng.normal(size=update.b.shape) * 0.1, jnp.float32))
        if lora.use_dora:
            norms[layer] = row_norms(matrix)
    params = place_adapter(model, jax.device_get(updates))
    stacked_norms: dict[str, dict[str, jax.Array]] = {}
    for name, layers in model.stacks_of_layers():
        stack = next((stack for stack in stacked.stacks if stack.name == name), None)
        for path in layers if norms else ():
            names = [path] if stack is None else [f"layers.{i}.{path}" for i in stack.layers]
            stacked_norms.setdefault(name, {})[path] = jnp.stack([norms[one] for one in names])
    return model, params, Frozen(stacked.stack(weights), stacked_norms)


def full_model(
    *, config: ModelConfig = CONFIG, placement: Placement = ONE, **options: object
) -> tuple[FullModel, dict[str, jax.Array]]:
    """Returns a model and its float32 masters."""
    stacked, weights = _weights(config, placement, None)
    plain = stacked.stack(weights)
    params = {
        name: jax.device_put(plain[name].astype(jnp.float32), shape.sharding)
        for name, shape in master_shapes(stacked).items()
    }
    return FullModel(stacked=stacked, **({"remat": "none"} | options)), params  # pyright: ignore


def batch_of(rows: int = 4, length: int = 24, *, seed: int = 0, vocab: int = 64) -> StepBatch:
    """Returns rows with two segments each and some padding. About half of the targets count."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    segments, positions, targets = (np.zeros((rows, length), np.int32) for _ in range(3))
    weights = np.zeros((rows, length), np.float32)
    for row in range(rows):
        cut = int(rng.integers(4, length - 6))
        for number, (start, end) in enumerate([(0, cut), (cut, length - 2)], 1):
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
            targets[row, start : end - 1] = tokens[row, start + 1 : end]
            weights[row, start : end - 1] = rng.random(end - 1 - start) < 0.5
    return StepBatch(*map(jnp.asarray, (tokens, positions, segments, targets, weights)))
