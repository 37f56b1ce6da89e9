"""Cuts the prompt positions that a step scores or pools into tiles of one size. The device reads them tile by tile.

    score tile   [ token_index | next token          ]   [2, M]
    pool tile    [ token_index | slot     | restarts ]   [3, M]

The size of a tile is part of the compiled programs; the number of tiles is not. Positions are in the order of the
plan's rows.
"""

from __future__ import annotations

import numpy as np

from ryzjax.dims import Int32Array
from ryzjax.serving.host.step_plan import StepPlan

__all__ = ["pool_tiles", "score_tiles"]


def score_tiles(plan: StepPlan, size: int) -> list[Int32Array]:
    """Returns the scored positions as tiles [2, `size`]. Padding scores token 0 after the step's first token."""
    readings = [reading for reading in plan.readings if reading.scored]
    if not readings:
        return []
    indices = np.concatenate([np.arange(len(r.scored)) + r.token_index(r.scored.start) for r in readings])
    targets = np.concatenate([r.row.sequence.token_ids[r.scored.start + 1 : r.scored.stop + 1] for r in readings])
    return _tiles(np.stack([indices, targets]), size, padding=(0, 0))


def pool_tiles(plan: StepPlan, size: int, *, max_sequences: int) -> list[Int32Array]:
    """Returns the pooled positions as tiles [3, `size`]. Padding has a slot past the last one, so its writes are
    dropped.

    `restarts` is 1 where the sum of a sequence starts. The previous sum of the slot is then dropped, also that of the
    same sequence before a preemption.
    """
    columns = []
    for reading in plan.readings:
        row, pooled = reading.row, reading.pooled
        if pooled:
            restarts = np.zeros(len(pooled))
            # The vector of the last token is a sum of one position.
            restarts[0] = pooled.start == 0 or row.sequence.request.pooling == "last"
            indices = np.arange(len(pooled)) + reading.token_index(pooled.start)
            columns.append(np.stack([indices, np.full(len(pooled), row.slot), restarts]))
    if not columns:
        return []
    return _tiles(np.concatenate(columns, axis=1), size, padding=(0, max_sequences, 0))


def _tiles(columns: np.ndarray, size: int, *, padding: tuple[int, ...]) -> list[Int32Array]:
    """Cuts [F, positions] into tiles [F, `size`]. The last one is padded with the given value of each field."""
    count = -(-columns.shape[1] // size)
    padded = np.empty((len(columns), count * size), np.int32)
    padded[:] = np.asarray(padding, np.int32)[:, None]
    padded[:, : columns.shape[1]] = columns
    return np.split(padded, count, axis=1)
