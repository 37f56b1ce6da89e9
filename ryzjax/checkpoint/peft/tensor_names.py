"""Names in `adapter_model.safetensors`: the tensors of an adapter, and the header entries that RyzJAX adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ryzjax.lora.config import shortest_endings

__all__ = ["BASE_GROUP_KEY", "BASE_WEIGHTS_KEY", "PREFIX", "TENSOR_NAME", "WEIGHTS_FILE", "shortest_patterns"]

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSOR_NAME = re.compile(
    rf"{re.escape(PREFIX)}(?P<path>.+)\.(?:(?P<part>lora_[AB])\.weight|(?P<dora>lora_magnitude_vector)(?:\.weight)?)"
)
BASE_WEIGHTS_KEY, BASE_GROUP_KEY = "ryzjax.base_weights", "ryzjax.base_weights_group"
"""Keys of the safetensors header: the format and the group size that the base was quantized to while loading. PEFT
does not read the header, and adapter_config.json has no field for them."""

Number = TypeVar("Number", int, float)


def shortest_patterns(values: Mapping[str, Number], default: Number, names: Iterable[str]) -> dict[str, Number]:
    """Returns regular expression -> value, for the layers whose value is not the default.

    Args:
      values: Layer name -> its value.
      default: The value that needs no pattern.
      names: All layer names of the model. No pattern matches a name that it should not.
    """
    names = tuple(names)
    patterns: dict[str, Number] = {}
    for value in dict.fromkeys(values.values()):
        if value != default:
            endings = shortest_endings([name for name in values if values[name] == value], names)
            patterns |= {re.escape(ending): value for ending in endings}
    return patterns
