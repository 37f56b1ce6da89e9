"""StepBatch: the packed rows that a train step reads, with their targets."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from ryzjax.batch import SegmentBatch

__all__ = ["StepBatch"]


class StepBatch(NamedTuple):
    """Packed rows and their targets. The fields are those of `data.training.batch.TrainBatch`.

    A train step reads [parts, rows, S], an objective one part of it.

    Attributes:
      token_ids: Token ids; any value in padding.
      positions: Position of each token in its sequence; 0 in padding.
      segment_ids: Equal consecutive numbers are one sequence; 0 is padding.
      targets: The token that follows each token in its sequence.
      loss_weights: 1 where the target counts, else 0.
    """

    token_ids: Int[Array, "*parts rows S"]
    positions: Int[Array, "*parts rows S"]
    segment_ids: Int[Array, "*parts rows S"]
    targets: Int[Array, "*parts rows S"]
    loss_weights: Float[Array, "*parts rows S"]

    @property
    def segments(self) -> SegmentBatch:
        """The batch that the model reads."""
        return SegmentBatch(self.token_ids, self.positions, self.segment_ids)
