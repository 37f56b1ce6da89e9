"""y = x W^T by the native kernels, with W bfloat16 or quantized. src/linear.h states their contract."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from ryzjax.native.library import native_refusal
from ryzjax.qarray import QArray, QFormat, multiply_from_left

__all__ = ["native_plain_refusal", "native_project", "native_quantized_refusal"]

_CHUNK = 32
"""The number of columns that the kernels take at a time. Groups and runs of nibbles are multiples of it, except that
int8 may have groups of half as many."""
_KINDS = {"bfloat16": 0, "int8": 1, "nibbles": 2}


def native_plain_refusal(x_dtype: jnp.dtype, weight_dtype: jnp.dtype) -> str | None:
    """Returns why the kernels cannot multiply arrays of these dtypes, or None if they can."""
    if x_dtype != jnp.bfloat16 or weight_dtype != jnp.bfloat16:
        return f"activations are {x_dtype} and weights {weight_dtype}, not bfloat16"
    return native_refusal()


def native_quantized_refusal(x_dtype: jnp.dtype, format: QFormat, k: int) -> str | None:
    """Returns why the kernels cannot multiply with a QArray of this format and K = `k`, or None if they can."""
    if x_dtype != jnp.bfloat16:
        return f"activations are {x_dtype}, not bfloat16"
    if format.kind == "float8":
        return "the kernels have no float8 weights"
    if format.activations == "int8":
        return "the kernels have no int8 activations with one scale per token"
    if format.rows not in (1, None):
        return "a scale belongs to several rows"
    group = format.group or k
    is_half = format.kind == "int8" and group == _CHUNK // 2 and k % _CHUNK == 0
    if k % group or (group != k and group % _CHUNK and not is_half):
        return (
            f"the group size {group} is not a multiple of {_CHUNK} (or {_CHUNK // 2} for int8 with K a multiple of "
            f"{_CHUNK}), or does not divide K={k}"
        )
    if format.pack and format.pack != _CHUNK and format.pack % (2 * _CHUNK):
        return f"nibbles are packed in runs of {format.pack}, not {_CHUNK} or a multiple of {2 * _CHUNK}"
    return native_refusal()


def native_project(
    x: BFloat16[Array, "M K"], weights: Sequence[BFloat16[Array, "_ K"] | QArray]
) -> tuple[Float[Array, "M _"], ...]:
    """Returns `x @ weight.T` for each weight [N, K], accumulated in float32, from one call.

    A quantized weight is multiplied by its scale. It is then rounded to bfloat16, unless the instruction set multiplies
    float32 (AVX2) or the weight's format quantizes activations to int8 in groups. A row of a result depends only on the
    same row of x, not on the number of rows. Gradients flow to x and to the weights that are arrays, from cotangents
    rounded to bfloat16.

    Raises:
      ValueError: the kernels do not take a dtype, format or shape.
    """
    for weight in weights:
        if reason := _refusal(x, weight):
            raise ValueError(f"native_project: {reason}")
    return _project(x, tuple(weights))


def _refusal(x: jax.Array, weight: jax.Array | QArray) -> str | None:
    if len(weight.shape) != 2 or x.ndim != 2 or weight.shape[1] != x.shape[1]:
        return f"x is {x.shape} and weight {weight.shape}; expected [M, K] and [N, K]"
    if not isinstance(weight, QArray):
        return native_plain_refusal(x.dtype, weight.dtype)
    if weight.order is not None:
        return "the weight's columns are permuted; permute x the same way, and pass the weight without its order"
    return native_quantized_refusal(x.dtype, weight.format, x.shape[1])


@jax.custom_vjp
def _project(x: jax.Array, weights: tuple[jax.Array | QArray, ...]) -> tuple[jax.Array, ...]:
    arrays: list[jax.Array] = []
    formats: list[int] = []
    for weight in weights:
        if isinstance(weight, QArray):
            kind = "nibbles" if weight.format.pack else "int8"
            there = [weight.values, weight.scales, weight.zeros, weight.codebook]
            there += [weight.scale_codes, weight.scale_blocks, weight.scale_offset]
            arrays += [array for array in there if array is not None]
            flags = weight.zeros is not None, weight.codebook is not None, weight.format.activations == "int8_groups"
            formats += [_KINDS[kind], weight.format.group or x.shape[1], weight.format.pack, *map(int, flags)]
        else:
            arrays.append(weight)
            formats += [_KINDS["bfloat16"], 0, 0, 0, 0, 0]
    out = [jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32) for weight in weights]
    return tuple(jax.ffi.ffi_call("ryzjax_linear", out)(x, *arrays, formats=np.asarray(formats, np.int64)))


Matrices = tuple[jax.Array | QArray, ...]


def _forward(x: jax.Array, weights: Matrices) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, Matrices]]:
    return _project(x, weights), (x, weights)


def _backward(
    saved: tuple[jax.Array, Matrices], grads: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    """Computes the gradients by XLA. A quantized weight is frozen, and is never dequantized as a whole."""
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


_project.defvjp(_forward, _backward)
