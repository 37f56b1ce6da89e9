"""The names of a model's weights and linear layers.

A name in one of the model's layers is "layers.<index>.<path>", for example "layers.3.mlp.up.weight". Any other name
is outer: it belongs to the embedding, the final norm or the head.
"""

from __future__ import annotations

__all__ = ["layer_name", "split_layer"]

_PREFIX = "layers."


def layer_name(layer: int, path: str) -> str:
    """Returns the name of a weight or linear layer: `layer_name(3, "mlp.up")` is "layers.3.mlp.up".

    Args:
      layer: Index of the model's layer.
      path: Name within the layer.
    """
    return f"{_PREFIX}{layer}.{path}"


def split_layer(name: str) -> tuple[int | None, str]:
    """Splits a name into the index of its layer and its path there. The index of an outer name is None.

    "layers.3.mlp.up" gives (3, "mlp.up"), and "lm_head" gives (None, "lm_head").
    """
    if not name.startswith(_PREFIX):
        return None, name
    layer, _, path = name.removeprefix(_PREFIX).partition(".")
    return int(layer), path
