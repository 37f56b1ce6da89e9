"""TrainBatch: one batch as arrays, whose rows hold segments and their targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ryzjax.data.training.example import Example

__all__ = ["Segment", "TrainBatch", "cut_into_rows", "make_batch", "segment_of"]


class TrainBatch(NamedTuple):
    """The arrays of a batch. All are [rows, S].

    Attributes:
      token_ids: int32; 0 in padding.
      positions: int32; position of each token in its segment, from 0; 0 in padding.
      segment_ids: int32; 1, 2, ... along a row, 0 in padding. Tokens attend within their segment.
      targets: int32; the next token of the same text, or 0 if there is none.
      loss_weights: float32; 1 where the target is trained, else 0.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray

    @property
    def num_trained(self) -> int:
        """Number of trained targets."""
        return int(np.count_nonzero(self.loss_weights))


class Segment(NamedTuple):
    """Consecutive tokens of one text with their targets. All arrays are [T].

    Attributes:
      token_ids: int32; the tokens.
      targets: int32; the next token of each token.
      loss_weights: float32; 1 where the target is trained, else 0.
      row: Index of the row of data that the tokens come from.
    """

    token_ids: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    row: int

    def part(self, start: int, end: int) -> Segment:
        """Returns tokens `start` to `end`. The last one keeps its target, which lies beyond the part."""
        return Segment(self.token_ids[start:end], self.targets[start:end], self.loss_weights[start:end], self.row)


def segment_of(example: Example, row: int) -> Segment:
    """Returns an example's tokens, with the next token of each as its target."""
    targets = np.zeros(len(example), np.int32)
    targets[:-1] = example.token_ids[1:]
    weights = np.zeros(len(example), np.float32)
    weights[:-1] = example.trained[1:]
    return Segment(example.token_ids, targets, weights, row)


def cut_into_rows(segments: Iterable[Segment], capacity: int) -> Iterator[list[Segment]]:
    """Lays segments end to end and cuts them every `capacity` tokens. The last row may be shorter."""
    row: list[Segment] = []
    room = capacity
    for segment in segments:
        start, size = 0, len(segment.token_ids)
        while start < size:
            end = min(start + room, size)
            row.append(segment.part(start, end))
            room -= end - start
            start = end
            if room == 0:
                yield row
                row, room = [], capacity
    if row:
        yield row


def make_batch(rows: Sequence[Sequence[Segment]], *, num_rows: int, sequence_tokens: int) -> TrainBatch:
    """Returns a batch [num_rows, sequence_tokens]. Missing rows are padding."""
    shape = (num_rows, sequence_tokens)
    token_ids, positions, segment_ids, targets = (np.zeros(shape, np.int32) for _ in range(4))
    loss_weights = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, 1):
            size = len(segment.token_ids)
            where = (i, slice(start, start + size))
            token_ids[where], targets[where] = segment.token_ids, segment.targets
            loss_weights[where], segment_ids[where] = segment.loss_weights, number
            positions[where] = np.arange(size)
            start += size
    return TrainBatch(token_ids, positions, segment_ids, targets, loss_weights)
