"""The log-probabilities of the trainer's own forward pass, for comparison with those of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import SegmentBatch
from ryzjax.loading.open_model import open_model
from ryzjax.loading.weight_plan import WeightChoice
from ryzjax.lora import Adapter
from ryzjax.models.stacked import StackedModel
from ryzjax.training.model import Frozen, LoraModel
from ryzjax.training.start.shapes import place_adapter

__all__ = ["trainers_log_probs"]


def trainers_log_probs(
    model: str, adapter: Adapter, *, weights: WeightChoice, weights_group: int
) -> Callable[[Sequence[int], bool], np.ndarray]:
    """Returns a function of (tokens, with the adapter or without).

    It returns the log-probability of each token except the first, in float32.
    """
    opened = open_model(model, dtype="float32", weights=weights, weights_group=weights_group)
    stacked = StackedModel(opened.model)
    frozen = Frozen(stacked.stack(dict(zip(opened.model.weights, opened.load(), strict=True))), {})
    trained = LoraModel(stacked=stacked, remat="full", lora=adapter.config, layers=tuple(adapter.weights))
    params = place_adapter(trained, adapter.weights)

    @jax.jit
    def log_probs(params: dict, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
        batch = SegmentBatch(tokens[None], positions, jnp.ones_like(positions))
        hidden = trained.hidden(params, frozen, batch, None)
        every = jax.nn.log_softmax(trained.logits(trained.head_params(params), frozen, hidden), axis=-1)
        return jnp.take_along_axis(every[:-1], tokens[1:, None], axis=-1)[:, 0]

    return lambda tokens, adapted: np.asarray(log_probs(params if adapted else {}, jnp.asarray(tokens, jnp.int32)))
