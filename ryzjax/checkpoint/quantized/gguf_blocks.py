"""The kinds of GGUF blocks that stay low-bit in memory, and how their bytes become the leaves of a QArray.

A block holds 32 columns of a row, or 256 for IQ4_XS and the kinds with a K. Its values are `scale * q` or
`scale * q + offset`. An offset becomes the zero point `-offset / scale`. The scales of 256-column blocks are products
of a float16 and a small integer, and are rounded to float16.

Rounding changes a value `scale * q + offset` by at most 2^-11 (|scale * q| + |offset|) + 2^-25 |scale|, and by nothing
where the file stores float16 scales and no offset. A group with |offset| > 65000 |scale| is flat: its zero point would
not be finite in float16. All of its values become `offset`, which changes them by at most 2^-10 |offset|.

Checkpoints have gigabytes, so the functions work on whole arrays, and shift bits in words of 8 bytes. The layouts are
those of ggml-common.h: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ryzjax.qarray import QFormat

__all__ = ["BLOCK_KINDS", "BlockKind", "is_flat", "stored_scales", "zero_points"]

_LARGEST_ZERO = np.float32(65000)
"""The largest zero point before its scale is rounded. Rounding it keeps the zero point below 65504, which is finite."""
_CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of the codes 0 to 15 of IQ4_NL and IQ4_XS."""

Scales = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """A kind of blocks.

    Attributes:
      format: The format in memory.
      columns: The number of columns in a block.
      values: blocks, uint8 [B, bytes of a block] -> their part of the leaf `values`: int8 [B, columns], or nibbles as
        uint8 [B, columns / 2].
      scales: blocks -> the scales and offsets (or None) of their groups, float32 [B, columns / group].
      codebook: The values of the codes of a float4 format.
    """

    format: QFormat
    columns: int
    values: Callable[[np.ndarray], np.ndarray]
    scales: Callable[[np.ndarray], Scales]
    codebook: tuple[int, ...] | None = None


def is_flat(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Returns which groups have no finite zero point in float16. Their q become 0, so that only the offset is kept."""
    return np.abs(offset) > _LARGEST_ZERO * np.abs(scale)


def stored_scales(scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """Returns the float16 scales of groups: their own, or |offset| if they are flat."""
    if offset is not None and (flat := is_flat(scale, offset)).any():
        scale = np.where(flat, np.abs(offset), scale)
    return scale.astype(np.float16)


def zero_points(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Returns the float16 zero points of groups: -offset / scale with the scale as stored, or 1 or -1 if flat."""
    scale = stored_scales(scale, offset).astype(np.float32)
    return (-offset / np.where(scale == 0, np.float32(1), scale)).astype(np.float16)


def _part(blocks: np.ndarray, first: int, last: int) -> np.ndarray:
    """Returns a copy of bytes [first, last) of each block."""
    return np.ascontiguousarray(blocks[:, first:last])


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Returns the float16 number at byte `at` of each block, as float32 [B, 1]."""
    return _part(blocks, at, at + 2).view(np.float16).astype(np.float32)


def _bits(part: np.ndarray, shift: int, mask: int) -> np.ndarray:
    """Returns `(byte >> shift) & mask` for each byte of a contiguous array; a negative shift is to the left."""
    words = part.reshape(-1).view(np.uint64)
    words = words >> np.uint64(shift) if shift >= 0 else words << np.uint64(-shift)
    words &= np.uint64(mask * 0x0101010101010101)
    return words.view(np.uint8).reshape(part.shape)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """Reorders nibbles from runs of 64 columns (in 32 bytes) to two runs of 32 columns (in 16 bytes each)."""
    stored = _part(blocks, 16, 144)
    # The file's low nibbles of bytes j and j + 16 make byte j of the first run, the high ones that of the second.
    words = stored.reshape(-1).view(np.uint64)
    low, high = (_bits(stored, shift, 0x0F).reshape(-1).view(np.uint64) for shift in (0, 4))
    runs = np.empty((words.size // 4, 2), np.dtype("V16"))
    for run, nibbles in enumerate((low, high)):
        joined = np.empty_like(nibbles)  # Of every four words, the first two are used.
        np.left_shift(nibbles[2:], np.uint64(4), out=joined[:-2])
        joined[:-2] |= nibbles[:-2]
        joined[-2:] = 0
        runs[:, run] = joined.view(runs.dtype)[::2]
    return runs.view(np.uint8).reshape(len(blocks), -1)


def _five_bits(nibbles: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns values 0 to 31 of 32-column blocks, uint8 [B, 32], from 16 bytes of nibbles and 4 of the highest bits."""
    top = _bits(np.unpackbits(high, axis=1, bitorder="little"), -4, 0x10)
    out = np.empty((len(nibbles), 32), np.uint8)
    np.bitwise_or(_bits(nibbles, 0, 0x0F), top[:, :16], out=out[:, :16])
    np.bitwise_or(_bits(nibbles, 4, 0x0F), top[:, 16:], out=out[:, 16:])
    return out


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _five_bits(_part(blocks, 6, 22), _part(blocks, 2, 6))
    q -= 16
    return q.view(np.int8)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    return _five_bits(_part(blocks, 8, 24), _part(blocks, 4, 8)).view(np.int8)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    top, nibbles = _part(blocks, 16, 48), _part(blocks, 48, 176)
    halves = [_bits(nibbles, shift, 0x0F).reshape(-1, 4, 32) for shift in (0, 4)]
    out = np.empty((len(blocks), 8, 32), np.uint8)
    for group in range(8):  # Bit `group` of byte j is the highest bit of column j of the group.
        np.bitwise_or(halves[group % 2][:, group // 2], _bits(top, group - 4, 0x10), out=out[:, group])
    return out.reshape(-1, 256).view(np.int8)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    nibbles, top = _part(blocks, 0, 128), _part(blocks, 128, 192).reshape(-1, 2, 32)
    halves = [_bits(nibbles, shift, 0x0F).reshape(-1, 2, 2, 32) for shift in (0, 4)]
    out = np.empty((len(blocks), 2, 4, 32), np.uint8)  # halves of 128 columns, then runs of 32
    for run in range(4):
        np.bitwise_or(halves[run // 2][:, :, run % 2], _bits(top, 2 * run - 4, 0x30), out=out[:, :, run])
    out -= 32
    return out.reshape(-1, 256).view(np.int8)


def _two_bits(stored: np.ndarray) -> np.ndarray:
    """Returns values 0 to 3 of 256-column blocks, uint8 [B, 2, 4, 32], from 64 bytes."""
    out = np.empty((len(stored), 2, 4, 32), np.uint8)
    for run in range(4):
        out[:, :, run] = _bits(stored, 2 * run, 0x03).reshape(-1, 2, 32)
    return out


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    return _two_bits(_part(blocks, 16, 80)).reshape(-1, 256).view(np.int8)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    top, out = _part(blocks, 0, 32), _two_bits(_part(blocks, 32, 96)).reshape(-1, 8, 32)
    for run in range(8):  # Bit `run` of byte j is the highest bit of column j of the run.
        out[:, run] |= _bits(top, run - 2, 0x04)
    out -= 4
    return out.reshape(-1, 256).view(np.int8)


def _scale(blocks: np.ndarray) -> Scales:
    return _half(blocks, 0), None


def _scale_and_offset(blocks: np.ndarray) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _six_bit_scales(blocks: np.ndarray) -> Scales:
    """The scales and offsets of Q4_K and Q5_K: 12 bytes hold eight of each, in 6 bits."""
    low, middle, high = (_part(blocks, at, at + 4) for at in (4, 8, 12))
    scale, offset = np.empty((2, len(blocks), 8), np.float32)
    scale[:, :4], scale[:, 4:] = low & 63, (high & 15) | (low >> 2 & 48)
    offset[:, :4], offset[:, 4:] = middle & 63, (high >> 4) | (middle >> 2 & 48)
    return _half(blocks, 0) * scale, -(_half(blocks, 2) * offset)


def _q2_k_scales(blocks: np.ndarray) -> Scales:
    stored = _part(blocks, 0, 16)
    return _half(blocks, 80) * (stored & 15), -(_half(blocks, 82) * (stored >> 4))


def _q3_k_scales(blocks: np.ndarray) -> Scales:
    """16 scales in 6 bits: 8 bytes of nibbles, and 4 bytes of their highest two bits."""
    low, high = _part(blocks, 96, 104), _part(blocks, 104, 108)
    q = np.concatenate([low & 15, low >> 4], axis=1)
    q |= np.concatenate([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=1)
    return _half(blocks, 108) * (q.astype(np.float32) - 32), None


def _q6_k_scales(blocks: np.ndarray) -> Scales:
    return _half(blocks, 208) * _part(blocks, 192, 208).view(np.int8), None


def _iq4_xs_scales(blocks: np.ndarray) -> Scales:
    """8 scales in 6 bits: 4 bytes of nibbles, and a 16-bit word of their highest two bits."""
    high, low = _part(blocks, 2, 4).view(np.uint16), _part(blocks, 4, 8)
    q = np.stack([low & 15, low >> 4], axis=-1).reshape(-1, 8) | ((high >> np.arange(0, 16, 2)) & 3) << 4
    return _half(blocks, 0) * (q.astype(np.float32) - 32), None


def _bytes_from(first: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: blocks[:, first:]


def _nibbles(*, has_zeros: bool = False, kind: Literal["int4", "float4"] = "int4") -> QFormat:
    return QFormat(
        kind=kind,
        group=32,
        pack=32,
        scale_dtype="float16",
        has_zeros=has_zeros,
        zero_dtype="float16" if has_zeros else "integer",
    )


def _int8(group: int, *, has_zeros: bool = False) -> QFormat:
    return QFormat(
        kind="int8",
        group=group,
        scale_dtype="float16",
        has_zeros=has_zeros,
        zero_dtype="float16" if has_zeros else "integer",
    )


BLOCK_KINDS: Mapping[str, BlockKind] = {
    "Q4_0": BlockKind(format=_nibbles(), columns=32, values=_bytes_from(2), scales=_scale),
    "Q4_1": BlockKind(format=_nibbles(has_zeros=True), columns=32, values=_bytes_from(4), scales=_scale_and_offset),
    "Q5_0": BlockKind(format=_int8(32), columns=32, values=_q5_0, scales=_scale),
    "Q5_1": BlockKind(format=_int8(32, has_zeros=True), columns=32, values=_q5_1, scales=_scale_and_offset),
    "Q8_0": BlockKind(format=_int8(32), columns=32, values=lambda blocks: blocks[:, 2:].view(np.int8), scales=_scale),
    "Q2_K": BlockKind(format=_int8(16, has_zeros=True), columns=256, values=_q2_k, scales=_q2_k_scales),
    "Q3_K": BlockKind(format=_int8(16), columns=256, values=_q3_k, scales=_q3_k_scales),
    "Q4_K": BlockKind(format=_nibbles(has_zeros=True), columns=256, values=_q4_k, scales=_six_bit_scales),
    "Q5_K": BlockKind(format=_int8(32, has_zeros=True), columns=256, values=_q5_k, scales=_six_bit_scales),
    "Q6_K": BlockKind(format=_int8(16), columns=256, values=_q6_k, scales=_q6_k_scales),
    "IQ4_NL": BlockKind(
        format=_nibbles(kind="float4"), columns=32, values=_bytes_from(2), scales=_scale, codebook=_CODEBOOK
    ),
    "IQ4_XS": BlockKind(
        format=_nibbles(kind="float4"), columns=256, values=_bytes_from(8), scales=_iq4_xs_scales, codebook=_CODEBOOK
    ),
}
"""The kinds by the names that the `gguf` package gives them. All other kinds are dequantized while loading."""
