"""Shardings of an optimizer's states: each state lies beside its parameter."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax
from jax.sharding import NamedSharding

from ryzjax.sharding.derived import derived_sharding

__all__ = ["optimizer_shardings"]


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: object, *, replicated: NamedSharding
) -> optax.OptState:
    """Returns shardings with the structure of `optimizer.init(params)`, for `out_shardings` and for restoring.

    A state belongs to the parameter whose key path its own path contains, and it is sharded like that parameter,
    including block scales. Scalars and states of other shapes are replicated.

    Args:
      optimizer: The optimizer.
      params: A pytree of arrays or `jax.ShapeDtypeStruct`s with NamedShardings.
      replicated: The replicated sharding of the same mesh.
    """
    by_path = {tuple(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    longest = max(map(len, by_path), default=0)

    def place(path: jax.tree_util.KeyPath, state: jax.ShapeDtypeStruct) -> NamedSharding:
        owner = _owner(tuple(path), by_path, longest)
        if owner is None or not isinstance(owner.sharding, NamedSharding):
            return replicated
        return derived_sharding(owner.sharding, owner.shape, state.shape)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def _owner(
    path: jax.tree_util.KeyPath, params: Mapping[jax.tree_util.KeyPath, jax.Array], longest: int
) -> jax.Array | None:
    """Returns the parameter with the longest key path that a state's path contains."""
    for length in range(min(longest, len(path)), 0, -1):
        for start in range(len(path) - length + 1):
            if (owner := params.get(path[start : start + length])) is not None:
                return owner
    return None
