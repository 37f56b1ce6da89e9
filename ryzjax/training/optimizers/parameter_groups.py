"""Roles of parameters by name and rank: which are decayed, which go to Muon, which are the B of a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax

__all__ = ["Role", "Stacked", "has_layer_axis", "in_stacked_layers", "parameter_name", "parameter_roles"]

Role = Literal["matrix", "embedding", "router", "vector", "lora_a", "lora_b"]
"""`matrix` is a hidden weight; `embedding` the embedding or the head; `vector` a norm, bias, sink or DoRA magnitude."""

Stacked = Callable[[str], bool]
"""Whether the parameter of this name has a leading axis of layers. For the fields of a LoRA, their rank decides
instead."""

_LORA_RANKS = {"a": 2, "b": 2, "magnitude": 1}
_EMBEDDINGS = ("embed", "lm_head")


def in_stacked_layers(name: str) -> bool:
    """The default `Stacked`, for names of `StackedModel` such as "layers[0::1].mlp.up.weight"."""
    return name.startswith("layers")


def parameter_name(path: jax.tree_util.KeyPath) -> str:
    """Returns a leaf's key path as text, with slashes between keys, indices and fields:
    "layers[0::1]/attention.q/a"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def has_layer_axis(name: str, ndim: int, stacked: Stacked) -> bool:
    """Returns whether a leaf with `ndim` axes is a stack of layers."""
    field = name.rsplit("/", 1)[-1]
    if field in _LORA_RANKS:
        return ndim > _LORA_RANKS[field]
    return stacked(name)


def parameter_roles(params: object, *, stacked: Stacked = in_stacked_layers) -> object:
    """Returns a pytree of `Role`s with the structure of `params`.

    Args:
      params: A pytree of arrays or `jax.ShapeDtypeStruct`s. Fields `a`, `b` and `magnitude` belong to a LoRA. The role
        of every other leaf follows from its name and its rank without the axis of layers.
      stacked: Whether the parameter of a name has a leading axis of layers.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _role(parameter_name(path), leaf.ndim, stacked),
        params,
    )


def _role(name: str, ndim: int, stacked: Stacked) -> Role:
    words = name.replace("/", ".").split(".")
    field = name.rsplit("/", 1)[-1]
    if field in ("a", "b"):
        return "lora_a" if field == "a" else "lora_b"
    # Without this check the biases of experts, [L, X, N], would count as matrices.
    if words[-1] in ("bias", "magnitude", "sinks") or ndim - has_layer_axis(name, ndim, stacked) < 2:
        return "vector"
    if any(word in _EMBEDDINGS for word in words):
        return "embedding"
    return "router" if "router" in words else "matrix"
