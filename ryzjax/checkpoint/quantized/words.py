"""Small integers packed in 32-bit words."""

from __future__ import annotations

import numpy as np

__all__ = ["pack_words", "unpack_words"]


def unpack_words(words: np.ndarray, bits: int, axis: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 words -> uint8 values, 32 / bits of them along `axis` for each word.

    Args:
      bits: 4 or 8.
      order: value i of a word is `order[i]`th along the axis; by default they are in order, low bits first.
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
    """uint8 values -> int32 words along `axis`, low bits first, the last word filled up with zeros."""
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
