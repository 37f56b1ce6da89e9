"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.native.norm import native_rms_norm, native_rms_norm_refusal
from ryzjax.ops.dispatch import Kernel, Op, Probe
from ryzjax.sharding import Placement

__all__ = ["RMS_NORM", "rms_norm"]


def rms_norm(
    x: Float[Array, "... E"], weight: Float[Array, " E"], *, eps: float, offset: float, placement: Placement
) -> Float[Array, "... E"]:
    """Returns `x / sqrt(mean(x^2) + eps) * (offset + weight)`, computed in float32 and rounded once to the dtype of x.

    With several devices XLA computes it, because its partitioner splits the tokens.

    Args:
      x: activations.
      weight: the learned scale.
      eps: added to the mean square.
      offset: 1.0 for Gemma, whose weights are stored as their difference from one, otherwise 0.0.
      placement: the devices.
    """
    if placement.num_devices == 1:
        return RMS_NORM(x, weight, eps=eps, offset=offset)
    return RMS_NORM.reference(x, weight, eps=eps, offset=offset)


def _by_xla(
    x: Float[Array, "... E"], weight: Float[Array, " E"], *, eps: float, offset: float
) -> Float[Array, "... E"]:
    f32 = x.astype(jnp.float32)
    normed = f32 * lax.rsqrt(jnp.mean(f32 * f32, axis=-1, keepdims=True) + eps)
    return (normed * (offset + weight.astype(jnp.float32))).astype(x.dtype)


def _by_native(x: jax.Array, weight: jax.Array, *, eps: float, offset: float) -> jax.Array:
    return _differentiable(eps, offset, x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(eps: float, offset: float, x: jax.Array, weight: jax.Array) -> jax.Array:
    return native_rms_norm(x, weight, eps=eps, offset=offset)


def _forward(
    eps: float, offset: float, x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return native_rms_norm(x, weight, eps=eps, offset=offset), (x, weight)


def _backward(
    eps: float, offset: float, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(_by_xla, eps=eps, offset=offset), *saved)[1](grad)


_differentiable.defvjp(_forward, _backward)


def _native_supports(x: jax.Array, weight: jax.Array, **settings: object) -> str | None:
    return native_rms_norm_refusal(x.dtype, weight.dtype)


def _probes(dtype: DTypeLike) -> list[Probe]:
    x, weight = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape in ((8, 64), (64,)))
    return [Probe(label=f"{x.dtype.name}, one device", arrays=(x, weight), settings={"eps": 1e-6, "offset": 0.0})]


RMS_NORM = Op(
    "rms_norm",
    reference=_by_xla,
    kernels=(
        Kernel(name="native", platform="cpu", supports=_native_supports, run=_by_native, note="one pass over a row"),
    ),
    probes=_probes,
)
"""The op on one device."""
