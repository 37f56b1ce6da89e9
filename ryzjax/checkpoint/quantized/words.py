"""Packs 4- and 8-bit integers into 32-bit words, and unpacks them."""

from __future__ import annotations

import numpy as np

__all__ = ["pack_words", "unpack_words"]


def unpack_words(words: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Unpacks int32 words into uint8 values. The axis grows by a factor of 32 / bits.

    Args:
      words: Packed values, int32 of any shape.
      bits: Bits of a value, 4 or 8.
      axis: The axis that is packed.
      order: Position along the axis, within a word, of each of the word's values; low bits come first. By default
        values are in order.
    """
    per_word = 32 // bits
    axis %= words.ndim
    words = np.ascontiguousarray(words).view(np.uint32)
    parts = [((words >> np.uint32(bits * i)) & np.uint32(2**bits - 1)).astype(np.uint8) for i in range(per_word)]
    if order is not None:
        parts = [parts[order.index(i)] for i in range(per_word)]
    values = np.stack(parts, axis=axis + 1)
    shape = list(words.shape)
    shape[axis] *= per_word
    return values.reshape(shape)


def pack_words(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Packs uint8 values into int32 words along an axis, low bits first. The last word is padded with zeros.

    Args:
      values: Values below 2^bits, uint8 of any shape.
      bits: Bits of a value, 4 or 8.
      axis: The axis to pack.
    """
    per_word = 32 // bits
    values = np.moveaxis(values, axis, -1)
    missing = -values.shape[-1] % per_word
    if missing:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], missing), values.dtype)], axis=-1)
    values = values.reshape(*values.shape[:-1], -1, per_word).astype(np.uint32)
    words = np.zeros(values.shape[:-1], np.uint32)
    for i in range(per_word):
        words |= values[..., i] << np.uint32(bits * i)
    return np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis))
