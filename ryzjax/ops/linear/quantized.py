"""quantized_linear: y = x W^T + b with W of few bits, never whole in more.

int8       activations are rounded to int8 by token too (W8A8): an int8 product, exact in int32
panels     CPU: a loop over panels of rows, each dequantized into the cache and multiplied there
reference  the whole matrix dequantized, then `linear`: what XLA fuses on an accelerator

The weight is frozen: gradients flow to x alone, and keep W in few bits (`multiply_from_left`).
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
from ryzjax.ops.linear.reference import linear
from ryzjax.qarray import QArray, dequantize, multiply_from_left

__all__ = ["panel_matmul", "permute_columns", "quantize_rows", "quantized_linear", "quantized_linear_reference"]

_PANEL_ELEMENTS = 2**19
"""Weights dequantized at a time: they must stay in a core's cache until they are multiplied."""
_MAX_PANEL_ROWS = 256
_FEWEST_ROWS = 8
"""Fewer are padded: XLA on CPU multiplies 8 rows faster than 2."""
_IMPLIED_ZERO = 8.0


def quantized_linear(
    x: Float[Array, "T K"],
    weight: QArray,
    bias: Float[Array, " N"] | None = None,
    *,
    summed_over: tuple[str, ...] = (),
) -> Float[Array, "T N"]:
    """`x @ weight.T + bias`, accumulated and returned in float32.

    The gradient of x comes from cotangents rounded to its dtype; rounding activations to int8 counts as the identity
    (straight through).

    Args:
      x: activations; weights are dequantized to their dtype, unless the format multiplies in int8.
      weight: [N, K] without an order: who permutes its columns permutes x before (`QArray.order`).
      bias: added in float32.
      summed_over: mesh axes that split K, inside `shard_map`: the result is reduced over them.
    """
    assert weight.order is None, "x must be permuted first"
    if weight.format.activations == "int8":
        out = cast("Array", _int8(x, weight, summed_over))
    else:
        out = _by_dequantizing(x, weight)
        out = lax.psum(out, summed_over) if summed_over else out
    return out if bias is None else out + bias.astype(jnp.float32)


@jax.custom_vjp
def permute_columns(x: Float[Array, "T K"], order: Int[Array, " K"]) -> Float[Array, "T K"]:
    """Column order[i] of x becomes column i: as a matrix with an order takes its input.

    Its gradient is the inverse permutation: a gather, where JAX would scatter, 20 times as slow on a CPU.
    """
    return x[:, order]


def _permuted_back(order: Int[Array, " K"], grad: Float[Array, "T K"]) -> tuple[Float[Array, "T K"], None]:
    return grad[:, jnp.argsort(order)], None


permute_columns.defvjp(lambda x, order: (permute_columns(x, order), order), _permuted_back)


def quantized_linear_reference(x: Float[Array, "T K"], weight: QArray) -> Float[Array, "T N"]:
    """The product by the dequantized matrix."""
    return linear(x, dequantize(weight, x.dtype))


def quantize_rows(
    x: Float[Array, "T K"], summed_over: tuple[str, ...] = ()
) -> tuple[Int[Array, "T K"], Float[Array, "T 1"]]:
    """(int8 values, float32 scales) of activations, a scale a token: the largest becomes 127; zeros stay zeros."""
    x = x.astype(jnp.float32)
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    if summed_over:
        peak = lax.pmax(peak, summed_over)
    scale = jnp.where(peak > 0, peak / 127, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), scale


@jax.custom_vjp
def _by_dequantizing(x: Array, weight: QArray) -> Array:
    return lax.platform_dependent(x, weight, cpu=panel_matmul, default=quantized_linear_reference)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _int8(x: Array, weight: QArray, summed_over: tuple[str, ...]) -> Array:
    rows = x.shape[0]
    q, scale = quantize_rows(x, summed_over)
    if rows == 1:  # as in `linear`
        q = jnp.concatenate([q, jnp.zeros_like(q)])
    product = lax.dot_general(q, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)[:rows]
    if summed_over:
        product = lax.psum(product, summed_over)
    return product.astype(jnp.float32) * scale * from_bits(weight.row_scales())[:, 0].astype(jnp.float32)


def _save(x: Array, weight: QArray) -> tuple[Array, tuple[Array, QArray]]:
    return _by_dequantizing(x, weight), (x[:0], weight)  # x for its dtype


def _save_int8(x: Array, weight: QArray, summed_over: tuple[str, ...]) -> tuple[Array, tuple[Array, QArray]]:
    return _int8(x, weight, summed_over), (x[:0], weight)


def _input_gradient(saved: tuple[Array, QArray], grad: Array) -> tuple[Array, None]:
    x, weight = saved
    return multiply_from_left(grad.astype(x.dtype), weight).astype(x.dtype), None


def _int8_input_gradient(summed_over: tuple[str, ...], saved: tuple[Array, QArray], grad: Array) -> tuple[Array, None]:
    return _input_gradient(saved, lax.psum(grad, summed_over) if summed_over else grad)


_by_dequantizing.defvjp(_save, _input_gradient)
_int8.defvjp(_save_int8, _int8_input_gradient)


def panel_matmul(x: Float[Array, "T K"], weight: QArray) -> Float[Array, "T N"]:
    """The product, a panel of weight rows at a time; the last panel begins early enough to be a whole one."""
    rows = x.shape[0]
    n, k = weight.shape
    fmt = weight.format
    if fmt.group is not None and k % fmt.group:
        return quantized_linear_reference(x, weight)  # blocks that overhang (FP8): small and rare
    if rows < _FEWEST_ROWS:
        x = jnp.pad(x, ((0, _FEWEST_ROWS - rows), (0, 0)))
    scales = weight.row_scales()
    if scales.shape[0] != n:
        scales = jnp.broadcast_to(scales, (n, scales.shape[1]))
    weight = replace(weight, scales=scales)
    panel = _panel_rows(n, k)
    parts = _split_columns(x, fmt.pack)

    def one_panel(i: Int[Array, ""], out: Array) -> Array:
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
    """Rows of a panel: as many as fit, evened out over the panels, in multiples of 8."""
    most = max(16, min(_MAX_PANEL_ROWS, _PANEL_ELEMENTS // k))
    if n <= most:
        return n
    panels = -(-n // most)
    return min(n, -(-n // panels // 8) * 8)


def _split_columns(x: Array, pack: int) -> tuple[Array, ...]:
    """The columns that meet low nibbles and those that meet high ones; all of them where nothing is packed."""
    if not pack:
        return (x,)
    runs = x.reshape(x.shape[0], -1, 2, pack // 2)
    return runs[:, :, 0].reshape(x.shape[0], -1), runs[:, :, 1].reshape(x.shape[0], -1)


def _dequantize_panel(
    values: Array, scales: Array, zeros: Array | None, weight: QArray, dtype: jnp.dtype
) -> tuple[Array, ...]:
    """A panel's matrices [rows, columns], one for each part of `_split_columns`."""
    fmt = weight.format
    rows = values.shape[0]
    # A scale serves `group` columns, which are whole runs: [rows, groups, runs of a group, bytes or columns of a run].
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
    """e4m3 as its bits -> float32, in integer operations: XLA on CPU converts float8 value by value.

    Exact for every finite value; NaN is refused when a checkpoint is loaded.
    """
    bits = bits.astype(jnp.uint32)
    magnitude = bits & 0x7F
    # Exponent bias 127 - 7; below 8 the value is subnormal, magnitude * 2^-9.
    normal = lax.bitcast_convert_type((magnitude << 20) + (120 << 23), jnp.float32)
    positive = jnp.where(magnitude < 8, magnitude.astype(jnp.float32) * 2**-9, normal)
    return jnp.where(bits >= 0x80, -positive, positive)
