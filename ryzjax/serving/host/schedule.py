"""StepPlan: what one step computes."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from ryzjax.serving.host.sequence import Sequence

__all__ = ["PlannedRow", "StepPlan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRow:
    """One sequence's part of a step.

    Attributes:
      sequence: whose.
      slot: its row of the device's state.
      query_start: its first token among the step's flat tokens.
      query_len: its tokens.
      context_len: its tokens in the cache after the step.
      token_ids: the tokens; None where the one token is still on the device, in its slot.
      samples: whether the row ends at the last known token, and a new one is chosen.
      admits: the slot is new to the sequence: its settings must be loaded.
      output_index: tokens generated before the one that is chosen.
      ban_stops: that token may not be a stop token (min_tokens).
    """

    sequence: Sequence
    slot: int
    query_start: int
    query_len: int
    context_len: int
    token_ids: Tokens[int] | None
    samples: bool
    admits: bool
    output_index: int
    ban_stops: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """Rows of a step: those of one token that sample first, then prefill chunks.

    Attributes:
      rows: in the order of their tokens.
      num_decode_rows: leading rows of one token.
      num_tokens: over all rows.
      num_samples: rows that choose a token.
    """

    rows: tuple[PlannedRow, ...]
    num_decode_rows: int
    num_tokens: int
    num_samples: int
