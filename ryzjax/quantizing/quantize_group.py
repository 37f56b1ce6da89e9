"""quantize_group: quantizes the layers of an input group in several ways, and keeps the one best on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.quant.awq import ScaleSearch, scaled_hessian, search_scales
from ryzjax.quant.encode_matrix import MatrixMethod, encode_matrix, round_to_nearest
from ryzjax.quant.gptq import Factor, compensated, factorize
from ryzjax.quant.recipe import Method
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.block_runner import InputSums
from ryzjax.quantizing.moments import Judge, Moments

__all__ = ["GroupResult", "MemberResult", "quantize_group"]


@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """One quantized matrix of a group.

    Attributes:
      encoded: The quantized matrix.
      method: The method, as in `LayerReport.method`.
      output_error, rtn_error, weight_error: Relative errors, as in `LayerReport`.
      damping: The relative damping of GPTQ's Hessian; None for other methods.
      notes: Every fallback, in words.
    """

    encoded: EncodedMatrix
    method: str
    output_error: float | None
    rtn_error: float | None
    weight_error: float
    damping: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """A quantized group.

    Attributes:
      members: Member name -> its quantized matrix.
      scales: AWQ's scales, which the members' columns were multiplied by, float32 [K]; None without scaling.
    """

    members: Mapping[str, MemberResult]
    scales: Float[Array, " K"] | None


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """All members of a group, quantized in one way.

    Attributes:
      scales: AWQ's scales, float32 [K]; None without scaling.
      members: Member name -> (quantized matrix, method, squared output error).
      damping: The relative damping of GPTQ's Hessian; None for other methods.
      notes: Every fallback, in words.
    """

    scales: Float[Array, " K"] | None
    members: Mapping[str, tuple[EncodedMatrix, MatrixMethod, float]]
    damping: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def loss(self) -> float:
        return sum(loss for _, _, loss in self.members.values())


def quantize_group(
    weights: Mapping[str, jax.Array],
    schemes: Mapping[str, Scheme],
    method: Method,
    moments: Moments | None,
    *,
    model_dtype: str,
    can_scale: bool,
) -> GroupResult:
    """Quantizes the matrices of a group.

    Args:
      weights: Member name -> its plain matrix, float32 [N, K].
      schemes: Member name -> bits and groups.
      method: A method, or "auto" to try several and keep the best.
      moments: Moments of the inputs; None without data, which only "rtn" and "hqq" allow.
      model_dtype: The model's dtype, which determines the dtype of the scales.
      can_scale: Whether the layer before can take the inverse of AWQ's scales.
    """
    if moments is None:
        return _without_data(weights, schemes, method, model_dtype)
    attempts: list[_Attempt] = []
    notes: tuple[str, ...] = ()
    judges = {name: moments.judge(w) for name, w in weights.items()}

    def attempt(kind: MatrixMethod, scales: jax.Array | None) -> _Attempt:
        return _attempt(weights, schemes, kind, scales, moments.calibration, judges, model_dtype)

    rtn = attempt("rtn", None)
    if method in ("rtn", "hqq"):
        attempts.append(rtn if method == "rtn" else attempt("hqq", None))
    if method in ("gptq", "auto"):
        attempts.append(attempt("gptq", None))
    wants_scales = method in ("awq", "auto") and any(scheme.bits == 4 for scheme in schemes.values())
    if wants_scales and can_scale:
        search = _search(weights, schemes, moments, model_dtype)
        if search.strength > 0:
            attempts.append(attempt("rtn", search.scales))
            if method == "auto":
                attempts.append(attempt("gptq", search.scales))
        else:
            notes = ("awq: no scaling of the inputs lowers the error",)
    elif method == "awq":
        notes = ("awq: no layer before this one can take the scales of its inputs; rounded to nearest",)
    if method == "auto" or not attempts:
        attempts.insert(0, rtn)
    best = min(attempts, key=lambda candidate: candidate.loss)
    members = {}
    for name, w in weights.items():
        encoded, kind, loss = best.members[name]
        energy = judges[name].energy
        values = jnp.asarray(encoded.dequantized())
        values = values if best.scales is None else values / best.scales
        members[name] = MemberResult(
            encoded=encoded,
            method=("awq+" if best.scales is not None else "") + kind,
            output_error=_relative(loss, energy),
            rtn_error=_relative(rtn.members[name][2], energy),
            weight_error=_weight_error(w, values),
            damping=best.damping if kind == "gptq" else None,
            notes=notes + best.notes,
        )
    return GroupResult(members=members, scales=best.scales)


def _without_data(
    weights: Mapping[str, jax.Array], schemes: Mapping[str, Scheme], method: Method, model_dtype: str
) -> GroupResult:
    kind: MatrixMethod = "hqq" if method == "hqq" else "rtn"
    members = {}
    for name, w in weights.items():
        here: MatrixMethod = "rtn" if schemes[name].symmetric else kind
        encoded = encode_matrix(w, schemes[name], here, model_dtype=model_dtype)
        members[name] = MemberResult(
            encoded=encoded,
            method=here,
            output_error=None,
            rtn_error=None,
            weight_error=_weight_error(w, jnp.asarray(encoded.dequantized())),
        )
    return GroupResult(members=members, scales=None)


def _attempt(
    weights: Mapping[str, jax.Array],
    schemes: Mapping[str, Scheme],
    kind: MatrixMethod,
    scales: jax.Array | None,
    sums: InputSums,
    judges: Mapping[str, Judge],
    model_dtype: str,
) -> _Attempt:
    hessian = sums.inputs if scales is None else scaled_hessian(sums.inputs, scales)
    factor: Factor | None = None
    damping: float | None = None
    notes: tuple[str, ...] = ()
    if kind == "gptq":
        found = factorize(hessian)
        factor, damping = found, float(found.damping)
        dead = int(found.dead.sum())
        if dead:
            notes = (f"gptq: {dead} in features were zero in all calibration text; their weights became zero",)
        if not np.isfinite(damping):
            factor, damping, kind = None, None, "rtn"
            notes = ("gptq: the Hessian could not be factorized at any damping; rounded to nearest",)
    members: dict[str, tuple[EncodedMatrix, MatrixMethod, float]] = {}
    for name, w in weights.items():
        target, error = w, judges[name].error
        if factor is not None:
            # The drift is scaled like the inputs.
            cross = sums.cross if scales is None else scaled_hessian(sums.cross, scales)
            fitted = compensated(w if scales is None else w * scales, factor, cross)
            fitted = fitted if scales is None else fitted / scales
            # Weights fitted on too little text are worse on held-out text; then the plain weights are kept.
            target = fitted if error(fitted) < error(w) else w
        encoded = encode_matrix(
            target if scales is None else target * scales,
            schemes[name],
            kind,
            model_dtype=model_dtype,
            importance=jnp.maximum(jnp.diagonal(hessian), 1e-12),
            factor=factor,
        )
        values = jnp.asarray(encoded.dequantized())
        values = values if scales is None else values / scales
        members[name] = encoded, kind, error(values)
    return _Attempt(scales=scales, members=members, damping=damping, notes=notes)


def _search(
    weights: Mapping[str, jax.Array], schemes: Mapping[str, Scheme], moments: Moments, model_dtype: str
) -> ScaleSearch:
    scheme = next(scheme for scheme in schemes.values() if scheme.bits == 4)
    dtype = "bfloat16" if model_dtype == "bfloat16" else "float32"
    hessian = moments.calibration.inputs
    # The scales of groups are not searched for every candidate, but only for the winner afterwards.
    ones = jnp.ones(hessian.shape[0])
    return search_scales(
        list(weights.values()), hessian, lambda w: round_to_nearest(w, scheme, ones, dtype, search=False)
    )


def _relative(loss: float, energy: float) -> float:
    return float(np.sqrt(max(loss, 0) / energy)) if energy > 0 else 0.0


def _weight_error(w: jax.Array, values: jax.Array) -> float:
    energy = float(jnp.sum(w * w))
    return _relative(float(jnp.sum((values - w) ** 2)), energy)
