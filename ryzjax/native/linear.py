"""y = x W^T by the native kernels, W bfloat16 or quantized; see src/linear.h for what they promise."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from ryzjax.native.library import native_refusal
from ryzjax.qarray import QArray, QFormat, multiply_from_left

__all__ = ["native_linear_refusal", "native_linears", "native_quantized_refusal"]

_CHUNK = 32
"""Columns the kernels take at a time; groups and runs of nibbles are multiples of it."""
_KINDS = {"bfloat16": 0, "int8": 1, "nibbles": 2}


def native_linear_refusal(x_dtype: jnp.dtype, weight_dtype: jnp.dtype) -> str | None:
    """Why the kernels cannot multiply such arrays; None where they can."""
    if x_dtype != jnp.bfloat16 or weight_dtype != jnp.bfloat16:
        return f"activations are {x_dtype} and weights {weight_dtype}, not bfloat16"
    return native_refusal()


def native_quantized_refusal(x_dtype: jnp.dtype, format: QFormat, k: int) -> str | None:
    """Why the kernels cannot multiply with such a QArray of K = `k`; None where they can."""
    if x_dtype != jnp.bfloat16:
        return f"activations are {x_dtype}, not bfloat16"
    if format.kind == "float8":
        return "float8 weights are multiplied by XLA"
    if format.activations is not None:
        return "int8 activations are multiplied by XLA"
    if format.rows not in (1, None) or format.scale_dtype == "nested":
        return "scales are not one or one a row"
    group = format.group or k
    if k % group or (group != k and group % _CHUNK):
        return f"groups of {group} are no multiple of {_CHUNK}, or do not divide K={k}"
    if format.pack and format.pack != _CHUNK and format.pack % (2 * _CHUNK):
        return f"nibbles are packed in runs of {format.pack}, not {_CHUNK} or a multiple of {2 * _CHUNK}"
    return native_refusal()


def native_linears(
    x: BFloat16[Array, "M K"], weights: Sequence[BFloat16[Array, "N K"] | QArray]
) -> tuple[Float[Array, "M N"], ...]:
    """`x @ weight.T` for each weight [N, K], all in one call; accumulated and returned in float32.

    Quantized weights are rounded to bfloat16 after their scale. A row of a result depends on its row of x alone, not
    on M. Gradients, from cotangents rounded to bfloat16, flow to x and to weights that are arrays.

    Raises:
      ValueError: a dtype, format or shape they cannot multiply with.
    """
    for weight in weights:
        if reason := _refusal(x, weight):
            raise ValueError(f"native_linears: {reason}")
    return _linears(x, tuple(weights))


def _refusal(x: jax.Array, weight: jax.Array | QArray) -> str | None:
    if len(weight.shape) != 2 or x.ndim != 2 or weight.shape[1] != x.shape[1]:
        return f"x is {x.shape} and weight {weight.shape}; expected [M, K] and [N, K]"
    if not isinstance(weight, QArray):
        return native_linear_refusal(x.dtype, weight.dtype)
    if weight.order is not None:
        return "the weight's columns have an order; permute x, and give the weight without it"
    return native_quantized_refusal(x.dtype, weight.format, x.shape[1])


@jax.custom_vjp
def _linears(x: jax.Array, weights: tuple[jax.Array | QArray, ...]) -> tuple[jax.Array, ...]:
    arrays: list[jax.Array] = []
    formats: list[int] = []
    for weight in weights:
        if isinstance(weight, QArray):
            kind = "nibbles" if weight.format.pack else "int8"
            there = [weight.values, weight.scales, weight.zeros, weight.codebook]
            arrays += [array for array in there if array is not None]
            flags = weight.zeros is not None, weight.codebook is not None
            formats += [_KINDS[kind], weight.format.group or x.shape[1], weight.format.pack, *map(int, flags)]
        else:
            arrays.append(weight)
            formats += [_KINDS["bfloat16"], 0, 0, 0, 0]
    out = [jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32) for weight in weights]
    return tuple(jax.ffi.ffi_call("ryzjax_linear", out)(x, *arrays, formats=np.asarray(formats, np.int64)))


Matrices = tuple[jax.Array | QArray, ...]


def _forward(x: jax.Array, weights: Matrices) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, Matrices]]:
    return _linears(x, weights), (x, weights)


def _backward(
    saved: tuple[jax.Array, Matrices], grads: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    """By XLA; a quantized weight is frozen, and never whole in bfloat16."""
    x, weights = saved
    x_grad = jnp.zeros(x.shape, jnp.float32)
    weight_grads: list[jax.Array | None] = []
    for weight, grad in zip(weights, grads, strict=True):
        rounded = grad.astype(jnp.bfloat16)
        if isinstance(weight, QArray):
            x_grad += multiply_from_left(rounded, weight)
            weight_grads.append(None)
        else:
            x_grad += jnp.matmul(rounded, weight, preferred_element_type=jnp.float32)
            product = jnp.matmul(rounded.T, x, preferred_element_type=jnp.float32)
            weight_grads.append(product.astype(weight.dtype))
    return x_grad.astype(x.dtype), tuple(weight_grads)


_linears.defvjp(_forward, _backward)
