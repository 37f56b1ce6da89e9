"""StepBatch: the packed rows that a train step reads, with their targets."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from ryzjax.batch import SegmentBatch

__all__ = ["StepBatch"]


class StepBatch(NamedTuple):
    """Packed rows and what is learnt from them; see `data.packing.TrainBatch`, whose fields these are.

    Attributes:
      token_ids, positions, segment_ids: as of `SegmentBatch`.
      targets: the token after each one, in its segment.
      loss_weights: 1 where the target counts, else 0.
    """

    token_ids: Int[Array, "*parts rows S"]
    positions: Int[Array, "*parts rows S"]
    segment_ids: Int[Array, "*parts rows S"]
    targets: Int[Array, "*parts rows S"]
    loss_weights: Float[Array, "*parts rows S"]

    @property
    def segments(self) -> SegmentBatch:
        """What the model is given."""
        return SegmentBatch(self.token_ids, self.positions, self.segment_ids)
