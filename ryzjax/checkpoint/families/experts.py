"""Config fields and weight names that mixture-of-experts families share."""

from __future__ import annotations

import re
from typing import NamedTuple

from ryzjax.checkpoint.config_fields import ConfigFields

__all__ = ["ExpertWeight", "num_experts", "split_experts", "top_k"]

_EXPERTS = re.compile(r"layers\.(\d+)\.mlp\.experts\.(gate|up|down)\.(weight|bias)")


class ExpertWeight(NamedTuple):
    """The parts of our name of a weight that holds all experts of a layer.

    Attributes:
      layer: Index of the layer.
      part: "gate", "up" or "down".
      leaf: "weight" or "bias".
    """

    layer: int
    part: str
    leaf: str


def split_experts(name: str) -> ExpertWeight | None:
    """Splits our name of a weight of all experts; None for any other weight."""
    match = _EXPERTS.fullmatch(name)
    return None if match is None else ExpertWeight(int(match[1]), match[2], match[3])


def num_experts(fields: ConfigFields) -> int:
    """Reads `num_local_experts` or `num_experts`. If both are present, they must agree."""
    names = ("num_local_experts", "num_experts")
    found = {name: fields.integer(name, high=2**14) for name in names if fields.has(name)}
    if not found:
        return fields.integer("num_local_experts")
    if len(set(found.values())) > 1:
        raise fields.fail("num_experts", f"{found['num_local_experts']}, as num_local_experts says", remedy="Keep one.")
    return next(iter(found.values()))


def top_k(fields: ConfigFields, experts: int) -> int:
    """Reads `num_experts_per_tok`, which may not exceed the number of experts."""
    return fields.integer("num_experts_per_tok", high=experts)
