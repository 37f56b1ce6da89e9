"""StepPlan: what one step computes, as the scheduler decided it. Nothing here changes a sequence."""

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
      sequence: the sequence. Its `pages` cover `context_len` until the scheduler is called again.
      slot: the sequence's row in the device's state.
      query_start: the index of the row's first token in the flat tokens of the step.
      query_len: the number of the row's tokens.
      context_len: the sequence's tokens in the KV cache after this step. The row's positions are
        [context_len - query_len, context_len).
      token_ids: the tokens, or None for one token that only the device knows, by slot.
      samples: whether the sequence's next token is sampled from the logits of the last token.
      admits: whether this is the first row since the sequence was admitted. The device state of its slot must be set.
      output_index: the number of tokens generated before the sampled one, tokens in flight included.
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
    """The hidden states of one prompt that a step scores or pools. A decode row has none.

    Attributes:
      row: the sequence's part of the step.
      scored: the positions whose hidden state scores the next prompt token.
      pooled: the positions whose hidden state is added to the sequence's vector.
      finishes: whether the sequence ends with this row, without a token.
    """

    row: StepRow
    scored: range
    pooled: range
    finishes: bool

    def token_index(self, position: int) -> int:
        """Returns the index of a position of the row in the flat tokens of the step."""
        return self.row.query_start + position - (self.row.context_len - self.row.query_len)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One step. Pass it to the device before the scheduler is called again.

        rows     [ decode | decode | decode |   chunk of A    |  chunk of B  ]
        tokens   [   0    |   1    |   2    | 3 4 5 6 7 8 9 . | . . . . . .  ]

    Attributes:
      rows: decode rows first (one token, sampled), then prefill chunks, each in order of arrival.
      num_decode_rows: the number of decode rows.
      num_tokens: the tokens of all rows.
      num_prompt_tokens: the prompt tokens among them, also those computed again after a preemption.
      num_samples: the number of rows that sample.
      readings: the prompts that are scored or pooled, in the order of the rows.
    """

    rows: tuple[StepRow, ...]
    num_decode_rows: int
    num_tokens: int
    num_prompt_tokens: int
    num_samples: int
    readings: tuple[PromptReading, ...]

    @property
    def num_scored(self) -> int:
        """The number of positions whose next token is scored."""
        return sum(len(reading.scored) for reading in self.readings)


class Chunk(NamedTuple):
    """The next `query_len` tokens of a sequence, chosen for a step. `admits` is as in `StepRow`."""

    sequence: Sequence
    query_len: int
    admits: bool


def make_plan(chunks: Iterable[Chunk]) -> StepPlan:
    """Arranges chunks as a step. It reads the sequences and does not change them.

    Args:
      chunks: one chunk a sequence, in order of arrival.
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
        num_samples += row.samples
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
    """Returns what a row reads of its prompt, if anything."""
    sequence, request = row.sequence, row.sequence.request
    end, last = row.context_len, row.sequence.prompt_len - 1
    scored = pooled = range(0)
    if request.prompt_logprobs is not None:
        # Positions are scored in order, so the next one is in this chunk or after it. No token follows the last one.
        scored = range(sequence.num_scored, max(sequence.num_scored, min(end, last)))
    if request.pooling is not None:
        start = end - row.query_len
        pooled = range(start if request.pooling == "mean" else max(start, last), end)
    finishes = end > last and not sequence.generates
    reads = scored or pooled or finishes
    return [PromptReading(row=row, scored=scored, pooled=pooled, finishes=finishes)] if reads else []
