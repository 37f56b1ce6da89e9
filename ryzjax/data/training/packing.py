"""pack: decides which examples share a row of a batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

__all__ = ["pack"]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Puts lengths into bins, the longest first, each into the fullest bin with enough room (best fit decreasing).

    The number of bins is at most 11/9 of the minimum plus 6/9 (Johnson, 1973).

    Args:
      lengths: Length of each example, at most `capacity`.
      capacity: Capacity of a bin.

    Returns:
      Bins of ascending indices, ordered by their first index.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert length <= capacity, "examples are cut or refused before they are packed"
        found = bisect_left(spaces, (length, -1))
        if found == len(spaces):
            space, number = capacity, len(bins)
            bins.append([])
        else:
            space, number = spaces.pop(found)
        bins[number].append(index)
        insort(spaces, (space - length, number))
    return sorted(sorted(members) for members in bins)
