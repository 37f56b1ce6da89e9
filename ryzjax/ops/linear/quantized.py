"""project_quantized: y = x W^T + b with a low-bit weight, by XLA.

There are four implementations:

    int8       Activations are quantized to int8 per token too (W8A8). The product is exact in int32.
    integer    Activations are quantized to int8 in groups (`project_integer`).
    panels     On a CPU, a loop dequantizes a panel of rows into the cache and multiplies it there.
    reference  The whole matrix is dequantized, then multiplied. XLA fuses the two on an accelerator.

The weight is frozen. Gradients flow to x only, and the gradient dequantizes a panel at a time (`multiply_from_left`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.bits import from_bits
from ryzjax.ops.dispatch import Kernel, Op
from ryzjax.ops.linear.integer import project_integer
from ryzjax.ops.linear.reference import project_plain
from ryzjax.qarray import QArray, dequantize, multiply_from_left

__all__ = ["permute_columns", "project_by_panels", "project_dequantized", "project_quantized", "quantize_rows"]

_PANEL_ELEMENTS = 2**19
"""The number of weights in a panel. A panel must stay in a core's cache until it is multiplied."""
_MAX_PANEL_ROWS = 256
_FEWEST_ROWS = 8
"""Fewer rows are padded to this many, because XLA on a CPU multiplies 8 rows faster than 2."""
_IMPLIED_ZERO = 8.0


def project_quantized(
    x: Float[Array, "T K"],
    weight: QArray,
    bias: Float[Array, " N"] | None = None,
    *,
    summed_over: tuple[str, ...] = (),
) -> Float[Array, "T N"]:
    """Returns `x @ weight.T + bias`, accumulated in float32.

    The gradient of x uses cotangents rounded to the dtype of x. Quantizing activations to int8 counts as the identity
    (a straight-through estimator).

    Args:
      x: activations. Weights are dequantized to their dtype, unless the format multiplies in int8.
      weight: the weight [N, K], without `QArray.order`. If the weight's columns are permuted, permute `x` the same way
        before the call.
      bias: added in float32.
      summed_over: the mesh axes that split K inside `shard_map`. The result is summed over them.
    """
    assert weight.order is None, "x must be permuted first"
    if weight.format.activations == "int8":
        out = cast("Array", _int8(x, weight, summed_over))
    else:
        product = project_integer if weight.format.activations == "int8_groups" else _by_dequantizing
        out = cast("Array", product(x, weight))
        out = lax.psum(out, summed_over) if summed_over else out
    return out if bias is None else out + bias.astype(jnp.float32)


@jax.custom_vjp
def permute_columns(x: Float[Array, "T K"], order: Int[Array, " K"]) -> Float[Array, "T K"]:
    """Returns x with column order[i] moved to column i, which is the input of a matrix with permuted columns.

    The gradient gathers by the inverse permutation. JAX would scatter, which takes 20 times as long on a CPU.
    """
    return x[:, order]


def _permuted_back(order: Int[Array, " K"], grad: Float[Array, "T K"]) -> tuple[Float[Array, "T K"], None]:
    return grad[:, jnp.argsort(order)], None


permute_columns.defvjp(lambda x, order: (permute_columns(x, order), order), _permuted_back)


def project_dequantized(x: Float[Array, "T K"], weight: QArray) -> Float[Array, "T N"]:
    """Returns the product with the dequantized matrix."""
    return project_plain(x, dequantize(weight, x.dtype))


def quantize_rows(
    x: Float[Array, "T K"], summed_over: tuple[str, ...] = ()
) -> tuple[Int[Array, "T K"], Float[Array, "T 1"]]:
    """Quantizes activations to int8 with one float32 scale a token. The largest magnitude of a token becomes 127."""
    x = x.astype(jnp.float32)
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    if summed_over:
        peak = lax.pmax(peak, summed_over)
    scale = jnp.where(peak > 0, peak / 127, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), scale


@jax.custom_vjp
def _by_dequantizing(x: Array, weight: QArray) -> Array:
    return _DEQUANTIZING_PRODUCT(x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _int8(x: Array, weight: QArray, summed_over: tuple[str, ...]) -> Array:
    rows = x.shape[0]
    q, scale = quantize_rows(x, summed_over)
    if rows == 1:  # XLA on CPU has no fast path for a single row.
        q = jnp.concatenate([q, jnp.zeros_like(q)])
    product = lax.dot_general(q, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)[:rows]
    if summed_over:
        product = lax.psum(product, summed_over)
    return product.astype(jnp.float32) * scale * from_bits(weight.row_scales())[:, 0].astype(jnp.float32)


def _save(x: Array, weight: QArray) -> tuple[Array, tuple[Array, QArray]]:
    return _by_dequantizing(x, weight), (x[:0], weight)  # Only the dtype of x is needed.


def _save_int8(x: Array, weight: QArray, summed_over: tuple[str, ...]) -> tuple[Array, tuple[Array, QArray]]:
    return _int8(x, weight, summed_over), (x[:0], weight)


def _input_gradient(saved: tuple[Array, QArray], grad: Array) -> tuple[Array, None]:
    x, weight = saved
    return multiply_from_left(grad.astype(x.dtype), weight).astype(x.dtype), None


def _int8_input_gradient(summed_over: tuple[str, ...], saved: tuple[Array, QArray], grad: Array) -> tuple[Array, None]:
    return _input_gradient(saved, lax.psum(grad, summed_over) if summed_over else grad)


_by_dequantizing.defvjp(_save, _input_gradient)
_int8.defvjp(_save_int8, _int8_input_gradient)


def project_by_panels(x: Float[Array, "T K"], weight: QArray) -> Float[Array, "T N"]:
    """Returns the product, computed one panel of weight rows at a time. The last panel overlaps the one before it."""
    rows = x.shape[0]
    n, k = weight.shape
    fmt = weight.format
    if fmt.group is not None and k % fmt.group:
        return project_dequantized(x, weight)  # FP8 blocks larger than the rest of the matrix are small and rare.
    if rows < _FEWEST_ROWS:
        x = jnp.pad(x, ((0, _FEWEST_ROWS - rows), (0, 0)))
    scales = weight.row_scales()
    if scales.shape[0] != n:
        scales = jnp.broadcast_to(scales, (n, scales.shape[1]))
    weight = replace(weight, scales=scales)
    panel = _panel_rows(n, k)
    parts = _split_columns(x, fmt.pack)

    def one_panel(i: int | Int[Array, ""], out: Array) -> Array:
        first = jnp.minimum(i * panel, n - panel)

        def rows_of(a: Array) -> Array:
            return lax.dynamic_slice_in_dim(a, first, panel)

        zeros = None if weight.zeros is None else rows_of(weight.zeros)
        matrices = _dequantize_panel(rows_of(weight.values), rows_of(weight.scales), zeros, weight, x.dtype)
        product = sum(
            lax.dot_general(part, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            for part, matrix in zip(parts, matrices, strict=True)
        )
        return lax.dynamic_update_slice_in_dim(out, product, first, 1)

    out = jnp.zeros((x.shape[0], n), jnp.float32)
    if n == panel:
        return one_panel(jnp.int32(0), out)[:rows]
    return lax.fori_loop(0, -(-n // panel), one_panel, out)[:rows]


def _panel_rows(n: int, k: int) -> int:
    """Returns the rows of a panel: a multiple of 8 that fits the cache and makes the panels equal."""
    most = max(16, min(_MAX_PANEL_ROWS, _PANEL_ELEMENTS // k))
    if n <= most:
        return n
    panels = -(-n // most)
    return min(n, -(-n // panels // 8) * 8)


def _split_columns(x: Array, pack: int) -> tuple[Array, ...]:
    """Returns the columns of low nibbles and those of high nibbles, or all columns if nothing is packed."""
    if not pack:
        return (x,)
    runs = x.reshape(x.shape[0], -1, 2, pack // 2)
    return runs[:, :, 0].reshape(x.shape[0], -1), runs[:, :, 1].reshape(x.shape[0], -1)


def _dequantize_panel(
    values: Array, scales: Array, zeros: Array | None, weight: QArray, dtype: jnp.dtype
) -> tuple[Array, ...]:
    """Returns a panel's dequantized matrices [rows, columns], one for each part of `_split_columns`."""
    fmt = weight.format
    rows = values.shape[0]
    # A scale belongs to `group` columns, which are whole runs: [rows, groups, runs of a group, bytes or columns].
    groups = scales.shape[1]
    width = fmt.pack // 2 if fmt.pack else values.shape[1] // groups
    values = values.reshape(rows, groups, -1, width)
    scale = from_bits(scales).astype(jnp.float32)[:, :, None, None]
    zero = None if zeros is None else zeros.astype(jnp.float32)[:, :, None, None]

    def matrix(q: Array) -> Array:
        if weight.codebook is not None:
            q = weight.codebook[q]
        else:
            q = _float8_to_float32(q) if fmt.kind == "float8" else q.astype(jnp.float32)
            if zero is not None:
                q = q - zero
            elif fmt.kind == "int4":
                q = q - _IMPLIED_ZERO
        return (q * scale).reshape(rows, -1).astype(dtype)

    return (matrix(values & 15), matrix(values >> 4)) if fmt.pack else (matrix(values),)


def _float8_to_float32(bits: Array) -> Array:
    """Converts the bits of e4m3 to float32 with integer operations, because XLA on CPU converts float8 one by one.

    The result is exact for every finite value. Loading a checkpoint refuses NaN.
    """
    bits = bits.astype(jnp.uint32)
    magnitude = bits & 0x7F
    # The exponent bias is 127 - 7. Below 8 the value is subnormal: magnitude * 2^-9.
    normal = lax.bitcast_convert_type((magnitude << 20) + (120 << 23), jnp.float32)
    positive = jnp.where(magnitude < 8, magnitude.astype(jnp.float32) * 2**-9, normal)
    return jnp.where(bits >= 0x80, -positive, positive)


_DEQUANTIZING_PRODUCT = Op(
    "dequantizing_product",
    reference=project_dequantized,
    kernels=(
        Kernel(
            name="panels",
            platform="cpu",
            supports=lambda *arrays: None,
            run=project_by_panels,
            note="XLA's products of panels of rows, dequantized in the cache; for formats the native kernel refuses",
        ),
    ),
    reference_note="the matrix is dequantized and multiplied by XLA",
)
