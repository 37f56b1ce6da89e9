"""The dtype a run computes in where it does not name one: the checkpoint's, or float32 where that trains faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from ryzjax.native.bfloat16 import has_bfloat16_products

__all__ = ["Dtype", "DtypeChoice", "choose_dtype"]

Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """What a run computes in, and why.

    Attributes:
      dtype: "float32" or "bfloat16"; "auto" is the dtype that the weights are stored in.
      reason: for people.
      is_for_speed: whether the CPU decided, and not the user or the weights.
    """

    dtype: Dtype
    reason: str
    is_for_speed: bool = False

    def message(self, dtype: str) -> str:
        """One line: the dtype that came of it, and why."""
        return f"computing in {dtype}: {self.reason}"


_NO_PRODUCTS = (
    "this CPU has no bfloat16 products (AVX-512 BF16 or AMX), and without them float32 trains faster; "
    "--dtype bfloat16 takes less memory"
)


def choose_dtype(asked: Dtype, *, earlier: str | None = None) -> DtypeChoice:
    """Settles "auto".

    On a CPU without bfloat16 products, float32 was measured to train 1.3 to 1.6 times as fast as bfloat16, beside a
    plain base and beside an int4 one (docs/log.md). Everywhere else the weights' own dtype stays.

    Args:
      asked: what the user asked for.
      earlier: of the run that is gone on with, which must not change on another machine; None for a new run.
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
