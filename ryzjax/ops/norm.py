"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ryzjax.native.norm import native_rms_norm, native_rms_norm_refusal

__all__ = ["rms_norm", "rms_norm_by_xla"]


def rms_norm(
    x: Float[Array, "... E"], weight: Float[Array, " E"], eps: float, *, offset: float
) -> Float[Array, "... E"]:
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)`, computed in float32 and rounded once, to x's dtype.

    By the native kernel on a CPU: not to be left to automatic partitioning.

    Args:
      offset: 1.0 for Gemma, whose weights are stored as their distance from one; else 0.0.
    """
    by_xla = partial(rms_norm_by_xla, eps=eps, offset=offset)
    if native_rms_norm_refusal(x.dtype, weight.dtype) is not None:
        return by_xla(x, weight)
    native = partial(_differentiable, eps, offset)
    return lax.platform_dependent(x, weight, cpu=native, default=by_xla)


def rms_norm_by_xla(
    x: Float[Array, "... E"], weight: Float[Array, " E"], eps: float, *, offset: float
) -> Float[Array, "... E"]:
    """`rms_norm` in pure JAX."""
    f32 = x.astype(jnp.float32)
    normed = f32 * lax.rsqrt(jnp.mean(f32 * f32, axis=-1, keepdims=True) + eps)
    return (normed * (offset + weight.astype(jnp.float32))).astype(x.dtype)


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
    return jax.vjp(partial(rms_norm_by_xla, eps=eps, offset=offset), *saved)[1](grad)


_differentiable.defvjp(_forward, _backward)
