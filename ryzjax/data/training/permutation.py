"""permuted: a shuffle whose positions are computed one by one, identical on every machine and version.

A Feistel network over the smallest even number of bits that holds the indices is a permutation of its range, whatever
its round function is (Luby and Rackoff, 1988). Results outside the indices are permuted again until they are inside
(cycle walking). NumPy's own generators may change between versions, and then a run could not be resumed.
"""

from __future__ import annotations

import numpy as np

__all__ = ["permuted"]

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def permuted(indices: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Returns the positions to which a shuffle moves indices.

    Args:
      indices: int [N], from 0 to size - 1.
      size: Number of elements that are shuffled.
      key: Numbers that select the shuffle, such as seed and epoch.

    Returns:
      int64 [N]. Over all indices, each number from 0 to size - 1 occurs once.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = _round_keys(key)
    result = np.asarray(indices).astype(np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & low)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= size
    return result.astype(np.int64)


def _round_keys(key: tuple[int, ...]) -> list[np.uint64]:
    state = 0
    for word in key:
        state = _finalized((state + word + _GOLDEN) & _MASK)
    return [np.uint64(_finalized((state + i * _GOLDEN) & _MASK)) for i in range(1, _ROUNDS + 1)]


def _finalized(word: int) -> int:
    return int(_mixed(np.asarray([word], np.uint64))[0])


def _mixed(words: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), modulo 2^64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
