"""Sequence: what the host knows of one request while it is in the engine."""

from __future__ import annotations

from enum import Enum

from ryzjax.serving.messages.request import EngineRequest, FinishReason

__all__ = ["Sequence", "SequenceState"]


class SequenceState(Enum):
    """Where a sequence is: WAITING -> RUNNING -> FINISHED, and back to WAITING when preempted."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Mutable state of one request; owned by the scheduler. Compared by identity.

        token_ids     [ prompt ........ | generated ... ]
        in flight                                        [ ? ]   sampled, not read by the host yet
        num_computed  -------------------------------------->    keys and values written or in flight

    Args:
      request: what to generate.
      arrival: place in the order of arrival; unique.
      max_context_tokens: prompt and output never exceed this.

    Attributes:
      token_ids: prompt and generated tokens, as far as the host knows them.
      num_computed: leading tokens whose keys and values are written, or will be by a step in flight.
      num_scored: leading prompt positions whose next token is scored, or will be by a step in flight. A preemption
        leaves it: what is computed again is not scored again.
      num_in_flight: sampled tokens that the host has not read: at most 1 when a step is scheduled, 2 between
        that and the commit of the step before. The end of a sequence that generates nothing counts as one.
      pages: pages of the KV cache, in order of position.
      slot: row in the device's state by sequence; None unless admitted.
      adapter_slot: where on the device its adapter is; held from its first admission to its end.
      admission: place in the order of admissions, from 1; 0 before the first.
      state: see `SequenceState`.
      finish_reason: set when finished.
      rope_length: length that length-dependent RoPE scalings see for its tokens up to there (`layers.rope`): the
        prompt's, or all it had when it was computed again for having outgrown its rotations.
      end_len: tokens (prompt included) at which the sequence ends for its length.
      num_preemptions: how often it lost its pages.
      generates: whether it goes on after its prompt.
      reads_prompt: whether hidden states of its prompt are scored or pooled.
      first_scheduled_s, first_token_s, last_token_s: `time.monotonic()` of its milestones; the first is
        set by the scheduler, the others by who reads the tokens. Arrival is in the request.
    """

    __slots__ = (
        "adapter_slot",
        "admission",
        "arrival",
        "end_len",
        "finish_reason",
        "first_scheduled_s",
        "first_token_s",
        "generates",
        "last_token_s",
        "min_tokens",
        "num_computed",
        "num_in_flight",
        "num_preemptions",
        "num_scored",
        "pages",
        "prompt_len",
        "reads_prompt",
        "request",
        "rope_length",
        "slot",
        "state",
        "token_ids",
    )

    def __init__(self, request: EngineRequest, *, arrival: int, max_context_tokens: int):
        self.request = request
        self.arrival = arrival
        self.prompt_len = len(request.prompt_token_ids)
        self.rope_length = self.prompt_len
        self.end_len = min(self.prompt_len + request.max_new_tokens, max_context_tokens)
        self.min_tokens = request.params.min_tokens
        self.generates = request.max_new_tokens > 0
        if not self.generates:
            self.end_len += 1  # a token that never comes stands for the end of the prompt
        self.token_ids = list(request.prompt_token_ids)
        self.reads_prompt = request.prompt_logprobs is not None or request.pooling is not None
        self.num_computed = 0
        self.num_scored = 0
        self.num_in_flight = 0
        self.pages: list[int] = []
        self.slot: int | None = None
        self.adapter_slot: int | None = None
        self.admission = 0
        self.state = SequenceState.WAITING
        self.finish_reason: FinishReason | None = None
        self.num_preemptions = 0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float = request.arrival_s

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output, the one in flight included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def output_len(self) -> int:
        """Generated tokens that the host knows."""
        return len(self.token_ids) - self.prompt_len

    @property
    def is_ending(self) -> bool:
        """Whether the tokens in flight are its last, whatever they turn out to be."""
        return len(self.token_ids) + self.num_in_flight >= self.end_len

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id!r}, {self.state.value}, tokens={len(self.token_ids)}"
            f"+{self.num_in_flight}, computed={self.num_computed}, pages={len(self.pages)}, slot={self.slot})"
        )
