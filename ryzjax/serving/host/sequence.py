"""Sequence: what the scheduler knows of one request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ryzjax.serving.request import EngineRequest

__all__ = ["Sequence", "SequenceState"]


class SequenceState(enum.Enum):
    """WAITING (new, or preempted) -> RUNNING -> FINISHED; a preemption goes back to WAITING."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """One request's progress.

    Attributes:
      request: what was asked.
      arrival: number in the order of arrival.
      token_ids: prompt and generated tokens the host knows.
      num_computed: tokens whose keys and values are written, or will be by a dispatched step.
      num_in_flight: 1 while a token was sampled on the device and the host has not read it.
      pages: of the cache, in order.
      slot: row of the device's per-sequence state while running.
      first_scheduled_s, first_token_s, last_token_s: `time.monotonic()`, for metrics.
    """

    request: EngineRequest
    arrival: int
    token_ids: list[int]
    state: SequenceState = SequenceState.WAITING
    num_computed: int = 0
    num_in_flight: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float = 0.0

    @property
    def output_len(self) -> int:
        """Generated tokens the host knows."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence, one in flight included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_left(self) -> int:
        """Tokens still to be computed; 1 is a decode step."""
        return self.num_tokens - self.num_computed

    @property
    def ends_in_flight(self) -> bool:
        """Whether the token in flight is the last one by count: there is nothing more to schedule."""
        return self.output_len + self.num_in_flight >= self.request.max_new_tokens
