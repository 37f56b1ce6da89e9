"""LayerReport: the format and the errors of each linear layer after quantizing; one entry of the certificate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ryzjax.models.weight_spec import WeightSpec
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.quantize_group import MemberResult

__all__ = ["LayerReport", "report_of_plain", "report_of_quantized"]


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The result for one linear layer.

    Attributes:
      name: Our name of the layer.
      module: Name of the module in the files; empty for stacked experts.
      method: "rtn", "hqq" or "gptq", with "awq+" before it if the inputs were scaled; "none" if it was not quantized.
      bits: Bits of a value; 16 or 32 if the layer was not quantized.
      group_size: In features that share a scale; 0 for one scale a row.
      symmetric: Whether groups have no zero point.
      shape: [N, K], or [experts, N, K].
      nbytes: Bytes in memory, scales included.
      output_error: Relative root mean square error of the outputs on held-out text; None without data.
      rtn_error: The output error that rounding to nearest would have; None without data.
      weight_error: Relative root mean square error of the weights.
      damping: What GPTQ added to the Hessian's diagonal, relative to its mean; None for other methods.
      notes: Every fallback, in words.
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


def report_of_quantized(name: str, module: str, *, wanted: Scheme, scheme: Scheme, result: MemberResult) -> LayerReport:
    """Reports on a layer that was quantized.

    Args:
      name: Our name of the layer.
      module: Name of the module in the files.
      wanted: The scheme that the recipe asks for.
      scheme: The scheme that was used. It differs from `wanted` if the groups do not divide the in features.
      result: The quantized matrix and its errors.
    """
    encoded = result.encoded
    notes, k = result.notes, encoded.q.shape[1]
    if not wanted.fits(k):
        notes = (f"{k} in features are not whole groups of {wanted.group}: {scheme.describe()}", *notes)
    return LayerReport(
        name=name,
        module=module,
        method=result.method,
        bits=scheme.bits,
        group_size=encoded.format.group or 0,
        symmetric=scheme.symmetric,
        shape=encoded.q.shape,
        nbytes=encoded.format.nbytes(encoded.q.shape),
        output_error=result.output_error,
        rtn_error=result.rtn_error,
        weight_error=result.weight_error,
        damping=result.damping,
        notes=notes,
    )


def report_of_plain(name: str, module: str, spec: WeightSpec, shape: tuple[int, ...]) -> LayerReport:
    """Reports on a layer that was not quantized.

    Args:
      name: Our name of the layer.
      module: Name of the module in the files; empty for stacked experts.
      spec: The dtype and size of its weight.
      shape: [N, K], or [experts, N, K].
    """
    notes: tuple[str, ...] = ()
    if name.endswith(".router"):
        notes = ("routers stay in 16 bits",)
    elif len(shape) == 3:
        notes = ("experts are not quantized in this version",)
    return LayerReport(
        name=name,
        module=module,
        method="none",
        bits=16 if spec.dtype != np.float32 else 32,
        group_size=0,
        symmetric=True,
        shape=shape,
        nbytes=spec.nbytes,
        output_error=None,
        rtn_error=None,
        weight_error=0.0,
        notes=notes,
    )
