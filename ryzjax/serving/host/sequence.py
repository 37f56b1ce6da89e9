"""Sequence: the host's state of one request while it is in the engine."""

from __future__ import annotations

from enum import Enum

from ryzjax.serving.messages.request import EngineRequest, FinishReason

__all__ = ["Sequence", "SequenceState"]


class SequenceState(Enum):
    """The state of a sequence: WAITING -> RUNNING -> FINISHED, and back to WAITING when it is preempted."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """The mutable state of one request. The scheduler owns and changes it. Sequences are compared by identity.

        token_ids     [ prompt ........ | generated ... ]
        in flight                                        [ ? ]   sampled, not read by the host yet
        num_computed  -------------------------------------->    keys and values written or in flight

    Args:
      request: the request.
      arrival: the unique place in the order of arrival.
      max_context_tokens: the most tokens of prompt and output together.

    Attributes:
      token_ids: prompt and generated tokens that the host knows.
      num_computed: the number of leading tokens whose keys and values are written, or will be by a step in flight.
      num_scored: the number of leading prompt positions whose next token is scored, or will be by a step in flight. A
        preemption does not change it, so a position that is computed again is not scored again.
      num_in_flight: the sampled tokens that the host has not read: at most 1 when a step is scheduled, and 2 between
        that and the commit of the previous step. The end of a sequence that generates nothing counts as one.
      pages: the KV cache pages, in order of position.
      slot: the sequence's row in the device's state, or None if it is not admitted.
      adapter_slot: the device slot of its adapter, held from its first admission to its end.
      admission: the place in the order of admissions, from 1; 0 before the first admission.
      state: see `SequenceState`.
      finish_reason: why the sequence finished, or None.
      rope_length: the length that length-dependent RoPE scalings use for tokens up to it (`layers.rope`): the prompt's
        length, or the sequence's length when it was computed again because it had outgrown its rotations.
      end_len: the number of tokens, prompt included, at which the sequence ends because of its length.
      num_preemptions: how often the sequence lost its pages.
      generates: whether the sequence generates tokens after its prompt.
      reads_prompt: whether hidden states of the prompt are scored or pooled.
      first_scheduled_s, first_token_s, last_token_s: `time.monotonic()` of the sequence's milestones. The scheduler
        sets the first, and the engine sets the others when it reads tokens. The request has the time of arrival.
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
            self.end_len += 1  # The end of the prompt counts as one more token, which never comes.
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
        """The number of prompt and output tokens, tokens in flight included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def output_len(self) -> int:
        """The number of generated tokens that the host knows."""
        return len(self.token_ids) - self.prompt_len

    @property
    def is_ending(self) -> bool:
        """Whether the tokens in flight are the last ones, whatever their ids are."""
        return len(self.token_ids) + self.num_in_flight >= self.end_len

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id!r}, {self.state.value}, tokens={len(self.token_ids)}"
            f"+{self.num_in_flight}, computed={self.num_computed}, pages={len(self.pages)}, slot={self.slot})"
        )
