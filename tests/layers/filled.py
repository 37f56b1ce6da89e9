"""Layers with random weights, on one device or two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ryzjax.sharding import Layout, Placement

__all__ = ["ONE", "TWO", "Compiled", "compiled", "filled", "normal"]

ONE = Placement(Layout.load("single"), jax.devices()[:1])
TWO = Placement(Layout.load("tp"), jax.devices()[:2])

Layer = TypeVar("Layer", bound=nnx.Module)


def normal(shape: tuple[int, ...], *, seed: int = 0, dtype: str = "float32") -> jax.Array:
    """Returns standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


class Compiled(NamedTuple):
    """A compiled call of a layer, with its HLO."""

    run: Callable[[jax.Array], jax.Array]
    text: str


def filled(layer: Layer) -> Layer:
    """Returns the layer with random weights. Layers of the same shapes get the same weights."""
    rng = np.random.default_rng(5)
    state = nnx.state(layer)
    nnx.update(layer, jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape) * 0.5, a.dtype), state))
    return layer


def compiled(
    layer: nnx.Module, placement: Placement, call: Callable[[Any, jax.Array], jax.Array], x: jax.Array
) -> Compiled:
    """Compiles `call(layer, x)` for x. The weights are arguments, sharded by the layout."""
    graphdef, state = nnx.split(layer)

    def place(weight: nnx.Variable) -> jax.Array:
        metadata = weight.get_metadata()
        return jax.device_put(weight[...], placement.sharding(metadata["axes"], weight.shape, metadata["units"]))

    placed = jax.tree.map(place, state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    leaves, structure = jax.tree.leaves(placed), jax.tree.structure(state)

    def run(leaves: list[jax.Array], x: jax.Array) -> jax.Array:
        return call(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)), x)

    executable = jax.jit(run).lower(leaves, x).compile()
    return Compiled(partial(executable, leaves), executable.as_text() or "")
