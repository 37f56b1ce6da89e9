"""per_layer: applies a transformation of single matrices to each layer of stacked parameters separately."""

from __future__ import annotations

from typing import cast

import jax
import optax

from ryzjax.training.optimizers.parameter_groups import Stacked, has_layer_axis, parameter_name

__all__ = ["per_layer"]


def per_layer(inner: optax.GradientTransformation, *, stacked: Stacked) -> optax.GradientTransformation:
    """Runs `inner` on each leaf, and on each layer of stacked leaves [L, ...].

    Adafactor factors the two largest axes of a leaf and takes root mean squares over the whole leaf. It would treat a
    stack of layers as one large array. Here each layer has its own state, with a leading axis of L.

    Args:
      inner: Must treat leaves independently. Every transformation does except the clipping of global norms.
      stacked: Whether the parameter of a name has a leading axis of layers.
    """

    def is_stack(path: jax.tree_util.KeyPath, leaf: jax.Array) -> bool:
        return has_layer_axis(parameter_name(path), leaf.ndim, stacked)

    def init(params: optax.Params) -> optax.OptState:
        def leaf(path: jax.tree_util.KeyPath, p: jax.Array) -> optax.OptState:
            return jax.vmap(inner.init)(p) if is_stack(path, p) else inner.init(p)

        return jax.tree_util.tree_map_with_path(leaf, params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        paths, treedef = jax.tree_util.tree_flatten_with_path(updates)
        states = treedef.flatten_up_to(state)
        new_updates, new_states = [], []
        for (path, g), s, p in zip(paths, states, treedef.flatten_up_to(params), strict=True):
            run = jax.vmap(inner.update) if is_stack(path, g) else inner.update
            new_update, new_state = cast("tuple[jax.Array, optax.OptState]", run(g, s, p))
            new_updates.append(new_update)
            new_states.append(new_state)
        return treedef.unflatten(new_updates), treedef.unflatten(new_states)

    return optax.GradientTransformation(init, update)
