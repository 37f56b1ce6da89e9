"""What quantizing each layer cost: part of the certificate, and kept while a run can still be resumed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LayerReport"]


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One linear layer.

    Attributes:
      name: ours.
      module: in the files.
      method: "rtn", "hqq", "gptq", with "awq+" before where inputs were scaled; "none" where it was left as it is.
      bits: a value's; 16 where it was left.
      group_size: in features that share a scale; 0 for a row.
      symmetric: without zeros.
      shape: [N, K], or [experts, N, K].
      nbytes: in memory, scales included.
      output_error: relative root mean square error of its outputs on held-out inputs; None without data.
      rtn_error: the same of rounding to nearest.
      weight_error: relative root mean square error of the weights.
      damping: of GPTQ's Hessian, over its mean diagonal.
      notes: every fallback, in words.
    """

    name: str
    module: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    shape: tuple[int, ...]
    nbytes: int
    output_error: float | None
    rtn_error: float | None
    weight_error: float
    damping: float | None = None
    notes: tuple[str, ...] = ()
