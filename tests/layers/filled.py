"""Layers with random weights, on one device or two."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ryzjax.sharding import Layout, Placement

__all__ = ["ONE", "TWO", "filled", "normal"]

ONE = Placement(Layout.load("single"), jax.devices()[:1])
TWO = Placement(Layout.load("tp"), jax.devices()[:2])

Layer = TypeVar("Layer", bound=nnx.Module)


def normal(shape: tuple[int, ...], *, seed: int = 0, dtype: str = "float32") -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def filled(layer: Layer) -> Layer:
    """The layer with random weights. Two layers of the same shapes get the same ones."""
    rng = np.random.default_rng(5)
    state = nnx.state(layer)
    nnx.update(layer, jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape) * 0.5, a.dtype), state))
    return layer
