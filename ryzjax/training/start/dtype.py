"""Chooses the dtype to compute in when the user names none: the checkpoint's, or float32 where that trains faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from ryzjax.native.bfloat16 import has_bfloat16_products

__all__ = ["Dtype", "DtypeChoice", "choose_dtype"]

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """The dtype that a run computes in, and the reason.

    Attributes:
      dtype: "float32", "bfloat16", or "auto" for the dtype of the stored weights.
      reason: The reason, for people.
      is_for_speed: Whether the CPU decided, and not the user or the weights.
    """

    dtype: Dtype
    reason: str
    is_for_speed: bool = False

    def message(self, dtype: str) -> str:
        """Returns a line with the resulting dtype and the reason."""
        return f"computing in {dtype}: {self.reason}"


_NO_PRODUCTS = (
    "this CPU has no bfloat16 products (AVX-512 BF16 or AMX), and without them float32 trains faster; "
    "--dtype bfloat16 takes less memory"
)


def choose_dtype(asked: Dtype, *, earlier: str | None = None) -> DtypeChoice:
    """Resolves "auto".

    On a CPU without bfloat16 products, float32 was measured to train 1.3 to 1.6 times as fast as bfloat16, over a plain
    base and over an int4 one (docs/log.md). Everywhere else the dtype of the weights is kept.

    Args:
      asked: The dtype that the user asked for.
      earlier: The dtype of the run that is resumed, which must not change on another machine; None for a new run.
    """
    if asked != "auto":
        return DtypeChoice(dtype=asked, reason="as asked for")
    if earlier in ("float32", "bfloat16"):
        return DtypeChoice(dtype=earlier, reason="as in the run so far")
    if jax.default_backend() != "cpu":
        return DtypeChoice(dtype="auto", reason="the dtype of the weights")
    if has_bfloat16_products():
        return DtypeChoice(dtype="auto", reason="the dtype of the weights; this CPU has bfloat16 products")
    return DtypeChoice(dtype="float32", reason=_NO_PRODUCTS, is_for_speed=True)
