"""StepPlan: what one step computes, as the scheduler decided it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ryzjax.serving.host.sequence import Sequence

__all__ = ["Chunk", "PromptReading", "StepPlan", "StepRow", "make_plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """One sequence's part of a step.

    Attributes:
      sequence: whose tokens. Its `pages` cover `context_len` until the scheduler is called again.
      slot: its row in the device's state by sequence.
      query_start: where its tokens begin in the step's flat tokens.
      query_len: how many there are.
      context_len: its tokens in the cache after this step; the row's positions are
        [context_len - query_len, context_len).
      token_ids: the tokens; None for one token that only the device knows, under the slot.
      samples: whether the last token's logits give the sequence's next token.
      admits: whether this is the first row since admission: what the device keeps by slot must be set.
      output_index: tokens generated before the one that is sampled, in flight ones included.
      ban_stops: whether the sampled token must not be a stop token (min_tokens).
    """

    sequence: Sequence
    slot: int
    query_start: int
    query_len: int
    context_len: int
    token_ids: tuple[int, ...] | None
    samples: bool
    admits: bool
    output_index: int
    ban_stops: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptReading:
    """What a step reads of one prompt: hidden states that are scored or pooled. Never of a decode row.

    Attributes:
      row: the sequence's part of the step.
      scored: positions whose hidden state scores the prompt token after it.
      pooled: positions whose hidden state goes into the sequence's vector.
      finishes: whether the sequence ends with this row, without a token.
    """

    row: StepRow
    scored: range
    pooled: range
    finishes: bool

    def token_index(self, position: int) -> int:
        """Where a position of the row is in the step's flat tokens."""
        return self.row.query_start + position - (self.row.context_len - self.row.query_len)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step. Hand it to the device before the scheduler is called again.

        rows     [ decode | decode | decode |   chunk of A    |  chunk of B  ]
        tokens   [   0    |   1    |   2    | 3 4 5 6 7 8 9 . | . . . . . .  ]

    Attributes:
      rows: decode rows first (one token, samples), then chunks of prompts, each in order of arrival.
      num_decode_rows: how many of the rows are decode rows.
      num_tokens: tokens of all rows.
      num_prompt_tokens: how many of them are prompt tokens (again, after a preemption).
      num_samples: rows that sample.
      readings: of the prompts that are scored or pooled, in the order of the rows.
    """

    rows: tuple[StepRow, ...]
    num_decode_rows: int
    num_tokens: int
    num_prompt_tokens: int
    num_samples: int
    readings: tuple[PromptReading, ...]

    @property
    def num_scored(self) -> int:
        """Positions whose next token is scored."""
        return sum(len(reading.scored) for reading in self.readings)


class Chunk(NamedTuple):
    """A sequence's next `query_len` tokens, chosen for a step; `admits` as in `StepRow`."""

    sequence: Sequence
    query_len: int
    admits: bool


def make_plan(chunks: Iterable[Chunk]) -> StepPlan:
    """Lays chunks out as a step, and advances their sequences' counters to what they are after it.

    Args:
      chunks: in order of arrival, one a sequence.
    """
    decodes: list[Chunk] = []
    prefills: list[Chunk] = []
    for chunk in chunks:
        sequence = chunk.sequence
        is_decode = chunk.query_len == 1 and sequence.num_computed + 1 == sequence.num_tokens and sequence.generates
        (decodes if is_decode else prefills).append(chunk)
    rows: list[StepRow] = []
    readings: list[PromptReading] = []
    query_start = num_prompt_tokens = num_samples = 0
    for chunk in decodes + prefills:
        row = _row(chunk, query_start)
        rows.append(row)
        sequence = chunk.sequence
        if sequence.reads_prompt:
            readings += _readings(row)
        query_start += chunk.query_len
        if sequence.num_computed < sequence.prompt_len:
            num_prompt_tokens += min(row.context_len, sequence.prompt_len) - sequence.num_computed
        sequence.num_computed = row.context_len
        if row.samples:
            sequence.num_in_flight += 1
            num_samples += 1
    return StepPlan(
        rows=tuple(rows),
        num_decode_rows=len(decodes),
        num_tokens=query_start,
        num_prompt_tokens=num_prompt_tokens,
        num_samples=num_samples,
        readings=tuple(readings),
    )


def _row(chunk: Chunk, query_start: int) -> StepRow:
    sequence = chunk.sequence
    assert sequence.slot is not None, "only admitted sequences get rows"
    start = sequence.num_computed
    end = start + chunk.query_len
    num_tokens = sequence.num_tokens
    output_index = num_tokens - sequence.prompt_len
    return StepRow(
        sequence=sequence,
        slot=sequence.slot,
        query_start=query_start,
        query_len=chunk.query_len,
        context_len=end,
        token_ids=tuple(sequence.token_ids[start:end]) if end <= len(sequence.token_ids) else None,
        samples=end == num_tokens and sequence.generates,
        admits=chunk.admits,
        output_index=output_index,
        ban_stops=output_index < sequence.min_tokens,
    )


def _readings(row: StepRow) -> list[PromptReading]:
    """What a row reads of its prompt, if anything; advances the sequence's counters."""
    sequence, request = row.sequence, row.sequence.request
    end, last = row.context_len, row.sequence.prompt_len - 1
    scored = pooled = range(0)
    if request.prompt_logprobs is not None:
        # In order, so what is not scored yet begins in this chunk or after it; nothing follows the last token.
        scored = range(sequence.num_scored, max(sequence.num_scored, min(end, last)))
        sequence.num_scored = scored.stop
    if request.pooling is not None:
        start = end - row.query_len
        pooled = range(start if request.pooling == "mean" else max(start, last), end)
    finishes = end > last and not sequence.generates
    if finishes:
        sequence.num_in_flight += 1
    reads = scored or pooled or finishes
    return [PromptReading(row=row, scored=scored, pooled=pooled, finishes=finishes)] if reads else []
