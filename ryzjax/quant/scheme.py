"""Scheme: what a linear layer is to be quantized to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.qarray import QFormat, pack_run

__all__ = ["Scheme"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bits, groups and zeros of a linear layer.

    Attributes:
      bits: 4 or 8.
      group: in features that share a scale; None for a whole row.
      symmetric: without zeros.
      activations: "int8" for W8A8: 8 bits, one scale a row.
    """

    bits: int
    group: int | None
    symmetric: bool = True
    activations: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"bits={self.bits} is not supported; expected 4 or 8")
        if self.group is not None and (self.group < 16 or self.group & (self.group - 1)):
            raise ConfigError(f"group={self.group} is not supported; expected a power of two from 16, or one a row")
        if self.bits == 8 and not self.symmetric:
            raise ConfigError("8 bits are quantized symmetrically; leave out the zeros")
        if self.activations and (self.bits != 8 or self.group is not None):
            raise ConfigError("int8 activations need 8 bits and one scale a row")

    @property
    def low(self) -> int:
        """The smallest value, around an implied zero."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest value."""
        return 2 ** (self.bits - 1) - 1

    def fits(self, k: int) -> bool:
        """Whether K = `k` in features are whole groups, and can be packed."""
        return k % (self.group or (32 if self.bits == 4 else 1)) == 0

    def fitted(self, k: int) -> Scheme:
        """The scheme, or 8 bits with a scale a row where its groups do not divide K = `k` in features."""
        return self if self.fits(k) else Scheme(bits=8, group=None, activations=self.activations)

    def format(self, k: int, scale_dtype: Literal["float32", "float16", "bfloat16"]) -> QFormat:
        """Of a matrix with K = `k`; a group of all columns is a row's."""
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
        """Bytes of a matrix [N, K] with scales of 16 bits."""
        return self.format(shape[1], "float16").nbytes(shape)

    def describe(self) -> str:
        """In words."""
        groups = "a scale a row" if self.group is None else f"groups of {self.group}"
        zeros = "" if self.symmetric else ", with zeros"
        return f"{self.bits} bits, {groups}{zeros}" + (", int8 activations" if self.activations else "")


def scale_dtype_for(model_dtype: str, scales: np.ndarray) -> Literal["float32", "float16", "bfloat16"]:
    """What scales of a model are stored in: its own 16 bits; float16 for a float32 model where they fit into it."""
    if model_dtype == "bfloat16":
        return "bfloat16"
    tiny, large = 2.0**-14, 65504.0
    return "float16" if np.all((scales >= tiny) & (scales <= large)) else "float32"
