"""Recipe: the settings by which a model is quantized."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ryzjax.errors import ConfigError
from ryzjax.quant.scheme import Scheme

__all__ = ["Method", "Recipe"]

Method = Literal["rtn", "hqq", "gptq", "awq", "auto"]
DATA_FREE = ("rtn", "hqq")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings by which a model is quantized.

    Attributes:
      method: "rtn" rounds to nearest with searched scales, and "hqq" fits zeros too; neither needs data. "gptq" and
        "awq" need calibration text. "auto" tries "rtn" and "gptq", each without and with AWQ's scales, for every group
        of layers, and takes the one with the least output error on held-out text.
      bits: Bits of a weight, 4 or 8.
      group_size: In features that share a scale; 0 for one scale a row.
      symmetric: Whether groups have no zero point. "hqq" always has zero points.
      int8_activations: W8A8: 8-bit weights with one scale a row, and activations quantized to int8 per token at run
        time.
      overrides: Regular expression over our layer names ("layers.0.mlp.down") -> bits: 4, 8, or 16 to leave the layer
        plain. The first expression that matches counts.
      target_bits: Average bits per weight of the linear layers, scales included, that a mix of 4 and 8 bits may use.
        The layers whose quantization changes the model's output most get 8 bits. None for one width.
      max_kl: An alternative to `target_bits`: the sum of the layers' KL divergences, in nats a token, below which a mix
        must stay.
      lm_head_bits: Bits of the head, 16 or 8.
    """

    method: Method = "auto"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    int8_activations: bool = False
    overrides: Mapping[str, int] = field(default_factory=dict)
    target_bits: float | None = None
    max_kl: float | None = None
    lm_head_bits: int = 16

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method={self.method!r} is not supported; expected one of {', '.join(get_args(Method))}")
        for pattern, bits in self.overrides.items():
            if bits not in (4, 8, 16):
                raise ConfigError(f"overrides: {pattern!r} asks for {bits} bits; expected 4, 8 or 16")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"overrides: {pattern!r} is not a regular expression ({error})") from error
        if self.lm_head_bits not in (8, 16):
            raise ConfigError(f"lm_head_bits={self.lm_head_bits} is not supported; expected 8 or 16")
        if self.target_bits is not None and self.max_kl is not None:
            raise ConfigError("target_bits and max_kl both set the size of a mix; give one of them")
        if self.target_bits is not None and not 4 <= self.target_bits <= 9:
            raise ConfigError(f"target_bits={self.target_bits} is out of range; expected 4 to 9, scales included")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ConfigError(f"max_kl={self.max_kl} must be above zero")
        if self.is_mixed and self.bits != 4:
            raise ConfigError(f"a mix of widths starts at 4 bits; bits={self.bits} must be left out")
        if self.method == "awq" and self.bits == 8:
            raise ConfigError("awq is for 4 bits; at 8 bits rounding to nearest loses almost nothing: use method rtn")
        self.scheme(self.bits)

    @property
    def is_mixed(self) -> bool:
        """Whether the recipe mixes 4 and 8 bits, chosen by the layers' sensitivity."""
        return self.target_bits is not None or self.max_kl is not None

    @property
    def needs_data(self) -> bool:
        """Whether the recipe needs calibration text."""
        return self.method not in DATA_FREE or self.is_mixed

    def scheme(self, bits: int) -> Scheme:
        """Returns the scheme of a layer with this many bits."""
        is_w8a8 = bits == 8 and self.int8_activations
        return Scheme(
            bits=bits,
            group=None if is_w8a8 or not self.group_size else self.group_size,
            symmetric=bits == 8 or (self.symmetric and self.method != "hqq"),
            activations="int8" if is_w8a8 else None,
        )

    def bits_of(self, layer: str) -> int:
        """Returns the bits that the recipe gives a layer, before a mix is chosen."""
        if layer == "lm_head":
            return self.lm_head_bits
        return next((bits for pattern, bits in self.overrides.items() if re.search(pattern, layer)), self.bits)

    def key(self) -> str:
        """Returns a hash of all fields. A run that was started with one recipe is not resumed with another."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
