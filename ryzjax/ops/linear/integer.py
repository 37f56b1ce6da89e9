"""project_integer: y = x W^T with a low-bit weight and activations quantized to int8 in groups, by XLA.

This is the reference of the integer kernels in ryzjax/native/src/integer_tiles.h. Every `ACTIVATION_GROUP` activations
of a token share a float32 scale, their largest magnitude / 127. The products of a group are summed, exactly if zero
points are whole numbers. The sum is multiplied by the scales of the activations and of the weight, and added in
float32. If the weight has groups of 16 columns, the two halves of a group of activations are summed apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.bits import from_bits
from ryzjax.qarray import ACTIVATION_GROUP, QArray, multiply_from_left, unpack_nibbles

__all__ = ["project_integer", "quantize_groups"]

_IMPLIED_ZERO = 8
_SMALLEST_PEAK = 1e-30
"""Groups with smaller activations become zero."""


def quantize_groups(x: Float[Array, "T K"]) -> tuple[Int[Array, "T G C"], Float[Array, "T G"]]:
    """Quantizes activations to int8 in groups of `ACTIVATION_GROUP`.

    Returns:
      The int8 numbers, with K padded to whole groups, and the float32 scales. The scale of a group is NaN if one of
      its numbers is not finite.
    """
    rows, k = x.shape
    groups = -(-k // ACTIVATION_GROUP)
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, groups * ACTIVATION_GROUP - k)))
    x = x.reshape(rows, groups, ACTIVATION_GROUP)
    peak = jnp.max(jnp.abs(x), axis=-1)
    is_finite = jnp.all(jnp.isfinite(x), axis=-1)
    is_small = peak < _SMALLEST_PEAK
    inverse = jnp.where(is_finite & ~is_small, 127.0 / jnp.where(is_small, 1.0, peak), 0.0)
    q = jnp.where(is_finite[..., None], jnp.round(x * inverse[..., None]), 0.0)
    scale = jnp.where(is_small, 0.0, peak * jnp.float32(1 / 127))
    return q.astype(jnp.int8), jnp.where(is_finite, scale, jnp.nan)


@jax.custom_vjp
def project_integer(x: Float[Array, "T K"], weight: QArray) -> Float[Array, "T N"]:
    """Returns `x @ weight.T`. For gradients, quantizing the activations counts as the identity.

    Args:
      x: activations.
      weight: the weight [N, K] without `QArray.order`. Its format permits int8 activations in groups.
    """
    q, x_scales = quantize_groups(x)
    w, w_scales = _integers(weight)
    n, k = weight.shape
    width = min(ACTIVATION_GROUP, weight.format.group or ACTIVATION_GROUP)  # of columns that share both scales
    q = q.reshape(q.shape[0], -1, width)
    x_scales = jnp.repeat(x_scales, ACTIVATION_GROUP // width, axis=1)
    groups = q.shape[1]
    w = jnp.pad(w, ((0, 0), (0, groups * width - k))).reshape(n, groups, width)
    group_of = jnp.minimum(jnp.arange(groups) * width // (weight.format.group or k), w_scales.shape[1] - 1)

    def add_group(g: Int[Array, ""], total: Float[Array, "T N"]) -> Float[Array, "T N"]:
        # At most 32 * 127 * 255 with whole-number zero points, which float32 holds exactly.
        products = lax.dot_general(
            q[:, g].astype(jnp.float32),
            w[:, g],
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
        )
        return total + products * (x_scales[:, g, None] * w_scales[:, group_of[g]])

    return lax.fori_loop(0, groups, add_group, jnp.zeros((x.shape[0], n), jnp.float32))


def _integers(weight: QArray) -> tuple[Float[Array, "N K"], Float[Array, "N _"]]:
    """Returns the weight without its scales in float32, and the scale of each row and group."""
    n, k = weight.shape
    group = weight.format.group or k
    scales = jnp.broadcast_to(from_bits(weight.row_scales()).astype(jnp.float32), (n, k // group))
    if weight.format.kind == "int8":
        w, zero = weight.values.astype(jnp.float32), 0
    else:
        nibbles = unpack_nibbles(weight.values, weight.format.pack)
        if weight.codebook is not None:
            step = jnp.max(jnp.abs(weight.codebook)) / 127
            return jnp.round(weight.codebook / step)[nibbles], scales * step
        w, zero = nibbles.astype(jnp.float32), _IMPLIED_ZERO
    if weight.zeros is None:
        return w - zero, scales
    zeros = jnp.broadcast_to(weight.zeros.astype(jnp.float32), scales.shape)
    return w - jnp.repeat(zeros, group, axis=1), scales


def _save(x: Array, weight: QArray) -> tuple[Array, tuple[Array, QArray]]:
    return project_integer(x, weight), (x[:0], weight)  # Only the dtype of x is needed.


def _input_gradient(saved: tuple[Array, QArray], grad: Array) -> tuple[Array, None]:
    x, weight = saved
    return multiply_from_left(grad.astype(x.dtype), weight).astype(x.dtype), None


project_integer.defvjp(_save, _input_gradient)
