"""Scheme: the bits, groups and zeros that a linear layer is quantized to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.qarray import QFormat, pack_run

__all__ = ["Scheme", "scale_dtype_for"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The bits, groups and zeros of a linear layer.

    Attributes:
      bits: Bits of a weight, 4 or 8.
      group: In features that share a scale; None for one scale a row.
      symmetric: Whether groups have no zero point.
      activations: "int8" for W8A8, which needs 8 bits and one scale a row; None to leave activations plain.
    """

    bits: int
    group: int | None
    symmetric: bool = True
    activations: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"bits={self.bits} is not supported; expected 4 or 8")
        if self.group is not None and (self.group < 16 or self.group & (self.group - 1)):
            raise ConfigError(f"group={self.group} is not supported; expected a power of two, 16 or more, or None")
        if self.bits == 8 and not self.symmetric:
            raise ConfigError("8-bit weights are always symmetric; leave out the zeros")
        if self.activations and (self.bits != 8 or self.group is not None):
            raise ConfigError("int8 activations need 8 bits and one scale a row")

    @property
    def low(self) -> int:
        """The smallest q."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest q."""
        return 2 ** (self.bits - 1) - 1

    def fits(self, k: int) -> bool:
        """Whether `k` in features are whole groups and can be packed."""
        return k % (self.group or (32 if self.bits == 4 else 1)) == 0

    def fitted(self, k: int) -> Scheme:
        """Returns the scheme, or 8 bits with one scale a row if its groups do not divide `k` in features."""
        return self if self.fits(k) else Scheme(bits=8, group=None, activations=self.activations)

    def format(self, k: int, scale_dtype: Literal["float32", "float16", "bfloat16"]) -> QFormat:
        """Returns the format of a matrix with `k` in features. A group of all in features becomes one scale a row."""
        group = None if self.group == k else self.group
        return QFormat(
            kind="int4" if self.bits == 4 else "int8",
            group=group,
            pack=pack_run(k, group) if self.bits == 4 else 0,
            scale_dtype=scale_dtype,
            has_zeros=not self.symmetric,
            activations=self.activations,
        )

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Returns the bytes of a matrix [N, K] with 16-bit scales."""
        return self.format(shape[1], "float16").nbytes(shape)

    def describe(self) -> str:
        """Returns the scheme in words."""
        groups = "one scale a row" if self.group is None else f"groups of {self.group}"
        zeros = "" if self.symmetric else ", with zeros"
        return f"{self.bits} bits, {groups}{zeros}" + (", int8 activations" if self.activations else "")


def scale_dtype_for(model_dtype: str, scales: np.ndarray) -> Literal["float32", "float16", "bfloat16"]:
    """Returns the dtype that a model's scales are stored in.

    A bfloat16 model has bfloat16 scales. A float32 model has float16 scales if they all fit, else float32.

    Args:
      model_dtype: The model's dtype.
      scales: The scales, or numbers of their magnitude, without zeros.
    """
    if model_dtype == "bfloat16":
        return "bfloat16"
    tiny, large = 2.0**-14, 65504.0
    return "float16" if np.all((scales >= tiny) & (scales <= large)) else "float32"
