"""What a parameter is, by its name and rank: which get weight decay, which go to Muon, which are the B of a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax

__all__ = ["Role", "Stacked", "has_layer_axis", "in_stacked_layers", "parameter_name", "parameter_roles"]

Role = Literal["matrix", "embedding", "router", "vector", "lora_a", "lora_b"]
"""`matrix` is a hidden weight; `embedding` the embedding or the head; `vector` a norm, bias, sink or DoRA magnitude."""

Stacked = Callable[[str], bool]
"""Whether the parameter of this name has a leading axis of layers; of the fields of a LoRA, their rank says it."""

_LORA_RANKS = {"a": 2, "b": 2, "magnitude": 1}
_EMBEDDINGS = ("embed", "lm_head")


def in_stacked_layers(name: str) -> bool:
    """The default `Stacked`: names as `StackedModel` gives them, "layers[0::1].mlp.up.weight"."""
    return name.startswith("layers")


def parameter_name(path: jax.tree_util.KeyPath) -> str:
    """A leaf's key path as text: keys, indices and fields with slashes between: "layers[0::1]/attention.q/a"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def has_layer_axis(name: str, ndim: int, stacked: Stacked) -> bool:
    """Whether a leaf of `ndim` axes is a stack of layers."""
    field = name.rsplit("/", 1)[-1]
    if field in _LORA_RANKS:
        return ndim > _LORA_RANKS[field]
    return stacked(name)


def parameter_roles(params: object, *, stacked: Stacked = in_stacked_layers) -> object:
    """A pytree of `Role`s with the structure of `params`.

    Args:
      params: a pytree of arrays or `jax.ShapeDtypeStruct`s. Fields `a`, `b` and `magnitude` are those of a LoRA;
        every other leaf is judged by its name and by its rank without the axis of layers.
      stacked: which leaves have such an axis.
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
    # By rank alone the biases of experts, [L, X, N], were matrices.
    if words[-1] in ("bias", "magnitude", "sinks") or ndim - has_layer_axis(name, ndim, stacked) < 2:
        return "vector"
    if any(word in _EMBEDDINGS for word in words):
        return "embedding"
    return "router" if "router" in words else "matrix"
