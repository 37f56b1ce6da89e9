"""QArray: a quantized matrix as it is stored in memory and passed through `jax.jit`.

A QArray is a pytree of arrays (the leaves) with a static `QFormat`. Its value at row n and column k is

    value[n, k] = (q[n, k] - zero[n, k // group]) * scale[n // rows, k // group]        int8, int4
    value[n, k] = codebook[q[n, k]]               * scale[n // rows, k // group]        float4 (NF4, FP4)
    value[n, k] = q[n, k]                         * scale[n // rows, k // group]        float8 e4m3

Nibbles (4-bit values) are packed in runs of `pack` columns. Byte j of a run holds column j of the run in its low half
and column j + pack / 2 in its high half. A matrix product can therefore treat the two halves of a run as two products
and interleave nothing, which makes it 2 to 5 times as fast with XLA on a CPU (docs/log.md). Checkpoint formats order
their nibbles differently; `ryzjax.checkpoint` reorders them once, while loading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ryzjax.bits import from_bits, storage_dtype

__all__ = [
    "ACTIVATION_GROUP",
    "LEAVES",
    "QArray",
    "QFormat",
    "dequantize",
    "multiply_from_left",
    "pack_nibbles",
    "pack_run",
    "take_columns",
    "unpack_nibbles",
]

Kind = Literal["int8", "int4", "float4", "float8"]
AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)

LEAVES = ("values", "scales", "zeros", "codebook", "order", "scale_codes", "scale_blocks", "scale_offset")
"""The names of all leaves. The format of a QArray determines which of them it has."""
_STORED: dict[Kind, type] = {"int8": jnp.int8, "int4": jnp.uint8, "float4": jnp.uint8, "float8": jnp.uint8}
_IMPLIED_ZERO = 8
"""The zero point of int4 without stored zeros: nibbles 0 to 15 stand for -8 to 7."""
ACTIVATION_GROUP = 32
"""The number of activations that share a scale with `QFormat.activations="int8_groups"`."""
_ROW_RUN = 32
"""Columns packed together where one scale covers a whole row."""
_NESTED_RUN = 256
"""First-level scales that share one second-level scale, as in bitsandbytes."""
_PANEL_ELEMENTS = 2**21
"""The number of weights that `multiply_from_left` dequantizes at a time."""


@dataclass(frozen=True, kw_only=True)
class QFormat:
    """How a matrix is quantized. The format is static under `jax.jit`: each format gets its own compiled program.

    Attributes:
      kind: The type of the values.
      group: The number of columns (in features) that share a scale, or None if one scale covers a whole row.
      rows: The number of rows that share a scale, or None if all rows share it.
      pack: The number of columns that are packed together in the order that the module describes; an even number for
        int4 and float4, and 0 for the other kinds.
      scale_dtype: The dtype of the scales: "float32", "float16" or "bfloat16". With "nested", the scales are themselves
        quantized to 8 bits, with a codebook of 256 numbers, a float32 scale for every 256 codes, and an offset.
      has_zeros: Whether each group has a stored zero point. The zero point of int4 without stored ones is 8.
      zero_dtype: The dtype of stored zero points: "integer" (uint8 for int4, int8 for int8), or "float16" for zero
        points that are not whole numbers. A matrix `scale * q + offset` has the zero points -offset / scale.
      has_order: Whether the columns are permuted: column i of the values multiplies input order[i] (GPTQ's act-order).
      activations: None to multiply in the dtype of the activations. "int8" to quantize each token's activations to int8
        with a scale of its own and to multiply in int8 (W8A8). "int8_groups" to do so with a scale for every
        `ACTIVATION_GROUP` activations of a token.

    Raises:
      ValueError: The attributes contradict each other.
    """

    kind: Kind
    group: int | None = None
    rows: int | None = 1
    pack: int = 0
    scale_dtype: Literal["float32", "float16", "bfloat16", "nested"] = "float32"
    has_zeros: bool = False
    zero_dtype: Literal["integer", "float16"] = "integer"
    has_order: bool = False
    activations: Literal["int8", "int8_groups"] | None = None

    def __post_init__(self) -> None:
        is_packed = self.kind in ("int4", "float4")
        if is_packed != bool(self.pack) or self.pack % 2:
            raise ValueError(f"pack={self.pack} for {self.kind}: expected an even number for int4 and float4, else 0")
        if self.pack and self.group is not None and self.group % self.pack:
            raise ValueError(f"pack={self.pack} does not divide group={self.group}; choose a divisor of the group")
        if self.zero_dtype != "integer" and not (self.has_zeros and self.kind in ("int4", "int8")):
            raise ValueError(
                f"zero_dtype={self.zero_dtype!r} for {self.kind}, has_zeros={self.has_zeros}: expected 'integer', or "
                "int4 or int8 with has_zeros=True"
            )
        if self.activations == "int8_groups" and (reason := self.int8_groups_refusal()):
            raise ValueError(f"activations={self.activations!r}: {reason}")
        if self.activations == "int8" and (self.kind != "int8" or self.group is not None or self.has_zeros):
            raise ValueError(
                f"int8 activations need symmetric int8 weights with one scale per row; got kind={self.kind}, "
                f"group={self.group}, has_zeros={self.has_zeros}"
            )

    def int8_groups_refusal(self) -> str | None:
        """Returns why this format does not permit `activations="int8_groups"`, or None if it does."""
        if self.kind == "float8":
            return "float8 weights are not integers"
        if self.activations == "int8":
            return "the checkpoint quantizes activations with one scale per token"
        is_half = self.kind == "int8" and self.group == ACTIVATION_GROUP // 2
        if self.group is not None and self.group % ACTIVATION_GROUP and not is_half:
            return f"group={self.group} is not a multiple of {ACTIVATION_GROUP}, or {ACTIVATION_GROUP // 2} for int8"
        return None

    @property
    def column_unit(self) -> int:
        """The smallest number of columns that can be cut off: whole groups and whole runs of packed nibbles."""
        return math.lcm(self.group or 1, self.pack or 1)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the scales (and zeros) of a matrix [..., N, K]."""
        *lead, n, k = shape
        return *lead, -(-n // (self.rows or n)), -(-k // (self.group or k))

    def leaf_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """Returns the shape and stored dtype of each leaf of a matrix [..., N, K], in the order of `LEAVES`.

        Raises:
          ValueError: K is not a multiple of `pack`.
        """
        *lead, _, k = shape
        if self.pack and k % self.pack:
            raise ValueError(f"K={k} in features is not a multiple of pack={self.pack}")
        scales = self.scale_shape(shape)
        columns = k // 2 if self.pack else k
        leaves: dict[str, tuple[tuple[int, ...], DTypeLike]] = {"values": ((*shape[:-1], columns), _STORED[self.kind])}
        if self.scale_dtype == "nested":
            leaves["scales"] = scales, jnp.uint8
        else:
            leaves["scales"] = scales, storage_dtype(self.scale_dtype)
        if self.has_zeros:
            integer = jnp.uint8 if self.kind == "int4" else jnp.int8
            leaves["zeros"] = scales, jnp.float16 if self.zero_dtype == "float16" else integer
        if self.kind == "float4":
            leaves["codebook"] = (16,), jnp.float32
        if self.has_order:
            leaves["order"] = (*lead, k), jnp.int32
        if self.scale_dtype == "nested":
            leaves["scale_codes"] = (256,), jnp.float32
            leaves["scale_blocks"] = (-(-math.prod(scales) // _NESTED_RUN),), jnp.float32
            leaves["scale_offset"] = (), jnp.float32
        return {name: (leaves[name][0], jnp.dtype(leaves[name][1])) for name in LEAVES if name in leaves}

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Returns the total bytes of the leaves of a matrix [..., N, K]."""
        return sum(math.prod(s) * d.itemsize for s, d in self.leaf_shapes(shape).values())


@partial(
    jax.tree_util.register_dataclass,
    data_fields=list(LEAVES),
    meta_fields=["format"],
)
@dataclass(frozen=True, kw_only=True)
class QArray:
    """A quantized matrix [..., N, K] with N out features and K in features.

    Leaves that the format does not have are None.

    Attributes:
      format: How the leaves encode the matrix.
      values: int8 [..., N, K]; float8 e4m3 as its bits, uint8 [..., N, K]; or packed nibbles, uint8 [..., N, K / 2].
      scales: [..., N / rows, K / group]. bfloat16 scales are stored as their bits, nested ones as uint8 codes.
      zeros: The zero points, in the shape of the scales; float16, or uint8 for int4 and int8 for int8.
      codebook: The 16 values that nibbles of a float4 matrix stand for, float32 [16].
      order: The input that each column multiplies, int32 [..., K].
      scale_codes: The codebook of nested scales, float32 [256].
      scale_blocks: The second-level scales of nested scales, float32 [number of scales / 256, rounded up].
      scale_offset: The number added to every nested scale, float32 [].
    """

    format: QFormat
    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    codebook: jax.Array | None = None
    order: jax.Array | None = None
    scale_codes: jax.Array | None = field(default=None)
    scale_blocks: jax.Array | None = field(default=None)
    scale_offset: jax.Array | None = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [..., N, K] of the matrix."""
        *rest, columns = self.values.shape
        return *rest, columns * (2 if self.format.pack else 1)

    @property
    def nbytes(self) -> int:
        """The total bytes of the leaves."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def row_scales(self) -> jax.Array:
        """Returns the scales with one row per row of the matrix, [..., N, K / group].

        If all rows share their scales, the shape is [..., 1, K / group]. Nested scales are decoded to float32. Others
        keep the dtype that they are stored in.
        """
        scales = self.scales
        if self.format.scale_dtype == "nested":
            assert self.scale_codes is not None and self.scale_blocks is not None and self.scale_offset is not None
            block = jnp.arange(scales.size).reshape(scales.shape) // _NESTED_RUN
            scales = self.scale_codes[scales] * self.scale_blocks[block] + self.scale_offset
        if self.format.rows not in (1, None):
            scales = jnp.repeat(scales, self.format.rows, axis=-2)[..., : self.shape[-2], :]
        return scales


def dequantize(weight: QArray, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Returns the matrix [..., N, K], with its columns in the order of the inputs.

    It is computed in float32 and cast to `dtype` at the end.
    """
    fmt = weight.format
    scales = from_bits(weight.row_scales()).astype(jnp.float32)
    k = weight.shape[-1]

    def columns(per_group: jax.Array) -> jax.Array:
        return jnp.repeat(per_group, fmt.group or k, axis=-1)[..., :k]

    if fmt.kind == "float8":
        q = lax.bitcast_convert_type(weight.values, jnp.float8_e4m3fn).astype(jnp.float32)
    elif fmt.kind == "int8":
        q = weight.values.astype(jnp.float32)
        if weight.zeros is not None:
            q = q - columns(weight.zeros.astype(jnp.float32))
    else:
        nibbles = unpack_nibbles(weight.values, fmt.pack)
        if weight.codebook is not None:
            q = weight.codebook[nibbles]
        elif weight.zeros is not None:
            q = nibbles.astype(jnp.float32) - columns(weight.zeros.astype(jnp.float32))
        else:
            q = nibbles.astype(jnp.float32) - _IMPLIED_ZERO
    values = q * columns(scales)
    if weight.order is not None:
        values = jnp.take_along_axis(values, jnp.argsort(weight.order, axis=-1)[..., None, :], axis=-1)
    return values.astype(dtype)


def take_columns(weight: QArray, first: jax.Array | int, count: int) -> QArray:
    """Returns the matrix [N, count] of the columns from `first` on, and copies only those.

    Args:
      weight: A matrix [N, K] without `order`, where K is a multiple of the group size.
      first: The first column, a multiple of `QFormat.column_unit`. It may be a traced value.
      count: The number of columns, a multiple of `QFormat.column_unit`.
    """
    fmt = weight.format
    assert weight.order is None and len(weight.shape) == 2, "a matrix whose columns are in the order of the inputs"
    flat = replace(fmt, rows=1, scale_dtype="float32" if fmt.scale_dtype == "nested" else fmt.scale_dtype)
    scales, zeros = weight.row_scales(), weight.zeros
    if fmt.group is not None:
        scales = lax.dynamic_slice_in_dim(scales, first // fmt.group, count // fmt.group, axis=1)
        zeros = (
            None if zeros is None else lax.dynamic_slice_in_dim(zeros, first // fmt.group, count // fmt.group, axis=1)
        )
    packed = 2 if fmt.pack else 1
    values = lax.dynamic_slice_in_dim(weight.values, first // packed, count // packed, axis=1)
    return QArray(format=flat, values=values, scales=scales, zeros=zeros, codebook=weight.codebook)


def multiply_from_left(x: jax.Array, weight: QArray) -> jax.Array:
    """Returns `x @ W` in float32 [T, K], for x [T, N] and W [N, K] without `order`.

    The gradient of a linear layer with respect to its input is such a product. W is dequantized to the dtype of x. On a
    CPU this happens a panel of columns at a time. Each panel of W gives complete columns of the result, so no partial
    sums are kept in memory. On other devices XLA dequantizes the whole matrix.
    """
    return lax.platform_dependent(x, weight, cpu=_by_panels, default=_by_whole)


def _by_whole(x: jax.Array, weight: QArray) -> jax.Array:
    return jnp.matmul(x, dequantize(weight, x.dtype), preferred_element_type=jnp.float32)


def _by_panels(x: jax.Array, weight: QArray) -> jax.Array:
    n, k = weight.shape
    unit = weight.format.column_unit
    panel = max(1, _PANEL_ELEMENTS // n // unit) * unit
    if k <= panel or k % unit:  # an FP8 matrix whose last block is incomplete: small and rare
        return _by_whole(x, weight)

    def one_panel(i: jax.Array, out: jax.Array) -> jax.Array:
        first = jnp.minimum(i * panel, k - panel)  # the last panel overlaps its neighbor to be whole
        return lax.dynamic_update_slice_in_dim(out, _by_whole(x, take_columns(weight, first, panel)), first, axis=1)

    return lax.fori_loop(0, -(-k // panel), one_panel, jnp.zeros((x.shape[0], k), jnp.float32))


def pack_run(k: int, group: int | None) -> int:
    """Returns the number of columns to pack together: the group size, or 32 where one scale covers a whole row.

    Args:
      k: The in features of the matrix.
      group: The group size in columns, or None if one scale covers a whole row.

    Raises:
      ValueError: The number is odd or does not divide `k`.
    """
    run = group or _ROW_RUN
    if run % 2 or k % run:
        unit = "groups" if group else "runs"
        raise ValueError(f"K={k} in features cannot be packed in {unit} of {run}: expected an even divisor of K")
    return run


def pack_nibbles(q: AnyArray, pack: int) -> AnyArray:
    """Packs uint8 values from 0 to 15 [..., K] into bytes [..., K / 2]."""
    runs = q.reshape(*q.shape[:-1], -1, 2, pack // 2)
    return (runs[..., 0, :] | (runs[..., 1, :] << 4)).reshape(*q.shape[:-1], -1)


def unpack_nibbles(packed: AnyArray, pack: int) -> AnyArray:
    """Unpacks bytes [..., K / 2] into uint8 values from 0 to 15 [..., K]."""
    runs = packed.reshape(*packed.shape[:-1], -1, pack // 2)
    stack = jnp.stack if isinstance(packed, jax.Array) else np.stack
    return stack([runs & 15, runs >> 4], axis=-2).reshape(*packed.shape[:-1], -1)  # pyright: ignore
