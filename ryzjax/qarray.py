"""QArray: a matrix of few bits, as it lies in memory and crosses the jit boundary.

    value[n, k] = (q[n, k] - zero[n, k // group]) * scale[n // rows, k // group]        int8, int4
    value[n, k] = codebook[q[n, k]]               * scale[n // rows, k // group]        float4 (NF4, FP4)
    value[n, k] = q[n, k]                         * scale[n // rows, k // group]        float8 e4m3

Nibbles are packed by runs of `pack` columns, byte j of a run holding columns j (low) and j + pack / 2 (high): a
matmul then takes the two halves of a run as two products, without interleaving anything (docs/log.md: 2 to 5x on
XLA for CPU). Checkpoint formats order their nibbles otherwise; `checkpoint` converts them once, on loading.
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
"""The parts a QArray may have; which ones it has follows from its format."""
_STORED: dict[Kind, type] = {"int8": jnp.int8, "int4": jnp.uint8, "float4": jnp.uint8, "float8": jnp.uint8}
_IMPLIED_ZERO = 8
"""Of int4 without zeros: nibbles 0 to 15 stand for -8 to 7."""
_ROW_RUN = 32
_NESTED_RUN = 256
"""Scales that share one of the second level (bitsandbytes)."""
_PANEL_ELEMENTS = 2**21
"""Weights dequantized at a time by `multiply_from_left`."""


@dataclass(frozen=True, kw_only=True)
class QFormat:
    """How a matrix is quantized: static, so that a compiled program is made for it.

    Attributes:
      kind: of the values.
      group: columns (in features) that share a scale; None for all of a row.
      rows: rows that share a scale; None for all of them.
      pack: columns packed together, see the module's docstring; 0 where values are not nibbles.
      scale_dtype: "float32", "float16" or "bfloat16"; "nested" for scales that are themselves quantized to 8 bits
        (a codebook of 256, a float32 scale per 256 of them, and an offset).
      has_zeros: whether groups have a zero point; int4 without has the implied zero 8.
      has_order: whether columns are permuted: column i of the values multiplies input order[i] (GPTQ's act-order).
      activations: "int8" to multiply in int8, with each token's activations rounded to its own scale (W8A8).
    """

    kind: Kind
    group: int | None = None
    rows: int | None = 1
    pack: int = 0
    scale_dtype: Literal["float32", "float16", "bfloat16", "nested"] = "float32"
    has_zeros: bool = False
    has_order: bool = False
    activations: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        is_packed = self.kind in ("int4", "float4")
        if is_packed != bool(self.pack) or self.pack % 2:
            raise ValueError(f"pack={self.pack} of {self.kind}: expected an even number of columns, 0 without nibbles")
        if self.pack and self.group is not None and self.group % self.pack:
            raise ValueError(f"pack={self.pack} does not divide group={self.group}")
        if self.activations and (self.kind != "int8" or self.group is not None or self.has_zeros):
            raise ValueError("int8 activations need symmetric int8 weights with one scale a row")

    @property
    def column_unit(self) -> int:
        """Columns that must stay together: a group, and a run of packed nibbles."""
        return math.lcm(self.group or 1, self.pack or 1)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scales (and zeros) of a matrix [..., N, K]."""
        *lead, n, k = shape
        return *lead, -(-n // (self.rows or n)), -(-k // (self.group or k))

    def leaf_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """Leaf name -> (shape, dtype as stored) for a matrix [..., N, K], in the order of `LEAVES`.

        Raises:
          ValueError: K is not a whole number of packed runs.
        """
        *lead, _, k = shape
        if self.pack and k % self.pack:
            raise ValueError(f"{k} in features are no whole number of packed runs of {self.pack}")
        scales = self.scale_shape(shape)
        columns = k // 2 if self.pack else k
        leaves: dict[str, tuple[tuple[int, ...], DTypeLike]] = {"values": ((*shape[:-1], columns), _STORED[self.kind])}
        if self.scale_dtype == "nested":
            leaves["scales"] = scales, jnp.uint8
        else:
            leaves["scales"] = scales, storage_dtype(self.scale_dtype)
        if self.has_zeros:
            leaves["zeros"] = scales, jnp.uint8 if self.kind == "int4" else jnp.int8
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
        """Bytes of all leaves of a matrix [..., N, K]."""
        return sum(math.prod(s) * d.itemsize for s, d in self.leaf_shapes(shape).values())


@partial(
    jax.tree_util.register_dataclass,
    data_fields=list(LEAVES),
    meta_fields=["format"],
)
@dataclass(frozen=True, kw_only=True)
class QArray:
    """A quantized matrix [..., N, K] (N out features, K in features); see the module's docstring.

    Attributes:
      format: what the leaves mean.
      values: int8, or float8 e4m3 as its bits, [..., N, K]; packed nibbles uint8 [..., N, K / 2].
      scales: [..., N / rows, K / group], bfloat16 as its bits; uint8 codes where nested.
      zeros: like the scales; uint8 of int4, int8 of int8.
      codebook: float32 [16].
      order: int32 [..., K].
      scale_codes, scale_blocks, scale_offset: float32 [256], [scales / 256] and []: what nested scales stand for.
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
        """[..., N, K] of the matrix it stands for."""
        *rest, columns = self.values.shape
        return *rest, columns * (2 if self.format.pack else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def row_scales(self) -> jax.Array:
        """Scales with a row for each of the matrix's, [..., N or 1, K / group]; still as stored where not nested."""
        scales = self.scales
        if self.format.scale_dtype == "nested":
            assert self.scale_codes is not None and self.scale_blocks is not None and self.scale_offset is not None
            block = jnp.arange(scales.size).reshape(scales.shape) // _NESTED_RUN
            scales = self.scale_codes[scales] * self.scale_blocks[block] + self.scale_offset
        if self.format.rows not in (1, None):
            scales = jnp.repeat(scales, self.format.rows, axis=-2)[..., : self.shape[-2], :]
        return scales


def dequantize(weight: QArray, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """The matrix [..., N, K] that a QArray stands for, computed in float32, columns in the order of the inputs."""
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
    """The matrix [N, count] of columns `first` and following, without a copy of the rest.

    Args:
      weight: [N, K] without an order, K a whole number of groups.
      first, count: whole multiples of `QFormat.column_unit`; `first` may be traced.
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
    """`x @ W` for x [T, N] and W [N, K] without an order: float32 [T, K]; what a gradient does.

    W is rounded to the dtype of x. On a CPU it is dequantized a panel of columns at a time: each panel of the result is
    complete at once, so that nothing is accumulated in memory. Elsewhere XLA dequantizes it whole.
    """
    return lax.platform_dependent(x, weight, cpu=_by_panels, default=_by_whole)


def _by_whole(x: jax.Array, weight: QArray) -> jax.Array:
    return jnp.matmul(x, dequantize(weight, x.dtype), preferred_element_type=jnp.float32)


def _by_panels(x: jax.Array, weight: QArray) -> jax.Array:
    n, k = weight.shape
    unit = weight.format.column_unit
    panel = max(1, _PANEL_ELEMENTS // n // unit) * unit
    if k <= panel or k % unit:  # blocks that overhang (FP8) are small and rare
        return _by_whole(x, weight)

    def one_panel(i: jax.Array, out: jax.Array) -> jax.Array:
        first = jnp.minimum(i * panel, k - panel)  # the last begins early enough to be a whole one
        return lax.dynamic_update_slice_in_dim(out, _by_whole(x, take_columns(weight, first, panel)), first, axis=1)

    return lax.fori_loop(0, -(-k // panel), one_panel, jnp.zeros((x.shape[0], k), jnp.float32))


def pack_run(k: int, group: int | None) -> int:
    """Columns to pack together in a matrix with K = `k`: a group, or 32 where a scale serves a whole row.

    Raises:
      ValueError: they do not divide K.
    """
    run = group or _ROW_RUN
    if run % 2 or k % run:
        raise ValueError(f"{k} in features are no whole number of {'groups' if group else 'runs'} of {run}")
    return run


def pack_nibbles(q: AnyArray, pack: int) -> AnyArray:
    """uint8 values 0 to 15 [..., K] -> bytes [..., K / 2]."""
    runs = q.reshape(*q.shape[:-1], -1, 2, pack // 2)
    return (runs[..., 0, :] | (runs[..., 1, :] << 4)).reshape(*q.shape[:-1], -1)


def unpack_nibbles(packed: AnyArray, pack: int) -> AnyArray:
    """Bytes [..., K / 2] -> uint8 values 0 to 15 [..., K]."""
    runs = packed.reshape(*packed.shape[:-1], -1, pack // 2)
    stack = jnp.stack if isinstance(packed, jax.Array) else np.stack
    return stack([runs & 15, runs >> 4], axis=-2).reshape(*packed.shape[:-1], -1)  # pyright: ignore
