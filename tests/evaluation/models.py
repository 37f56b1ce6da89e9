"""Small random models of every family."""

from __future__ import annotations

import jax

from ryzjax.loading.dummy import dummy_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement

ONE = Placement(Layout.load("single"), jax.devices()[:1])


def built(config: ModelConfig, placement: Placement = ONE) -> tuple[AbstractModel, tuple[jax.Array, ...]]:
    """A model and its weights, large enough that logits differ clearly."""
    model = abstract_model(config, placement)
    weights = dummy_weights(model.weights, 0)
    return model, tuple(weights[name] * (1 if "norm" in name else 12) for name in model.weights)
