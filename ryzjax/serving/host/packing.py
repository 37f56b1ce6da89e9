"""Packing: everything the device must know of a step, in one int32 buffer, one transfer.

    [ counts | token_ids T | token_rows T | rows R x ROW_FIELDS | page_table R x P | samples R x SAMPLE_FIELDS ]

Where adapters are served a row has one field more, the slot of its adapter.

The layout is shared by the host, which fills the buffer, and the compiled step, which slices it; floats
travel as their bits. What rarely changes (a slot's sampling settings, its page list) is kept in arrays by
slot and gathered, so that packing costs a few numpy calls, not a Python loop over fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ryzjax.dims import Int32Array
from ryzjax.serving.host.sequence import Sequence
from ryzjax.serving.host.step_plan import StepPlan

__all__ = ["ADAPTER_SLOT", "ROW_FIELDS", "SAMPLE_FIELDS", "PackedLayout", "StepPacker"]

ROW_FIELDS = ("query_start", "query_len", "context_len", "rope_length")
ADAPTER_SLOT = "adapter_slot"
"""Of a row where adapters are served; -1 for none."""
SAMPLE_FIELDS = (
    "token_index",
    "slot",
    "output_index",
    "ban_stops",
    "use_history",
    "wants_top",
    "top_k",
    "seed_low",
    "seed_high",
    "temperature",
    "top_p",
    "min_p",
    "repetition",
    "presence",
    "frequency",
)
"""Of a row that samples; the last six are float32 bits."""
_STEP_FIELDS = 4  # the first fields differ each step, the rest are the slot's settings
_COUNTS = ("num_decode_rows", "num_rows")


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Where each part of the buffer is, for one bucket.

    Attributes:
      tokens: T of the bucket.
      rows: R, the most sequences a step can have.
      pages: P, the most pages a sequence can have.
      has_adapters: whether rows say which slot their adapter is in.
    """

    tokens: int
    rows: int
    pages: int
    has_adapters: bool = False

    @property
    def row_fields(self) -> tuple[str, ...]:
        """The fields of a row."""
        return (*ROW_FIELDS, ADAPTER_SLOT) if self.has_adapters else ROW_FIELDS

    def part(self, name: str) -> tuple[slice, tuple[int, ...]]:
        """(slice of the buffer, shape) of a part."""
        sizes = {
            "counts": (len(_COUNTS),),
            "token_ids": (self.tokens,),
            "token_rows": (self.tokens,),
            "rows": (self.rows, len(self.row_fields)),
            "page_table": (self.rows, self.pages),
            "samples": (self.rows, len(SAMPLE_FIELDS)),
        }
        start = 0
        for part, shape in sizes.items():
            size = math.prod(shape)
            if part == name:
                return slice(start, start + size), shape
            start += size
        raise KeyError(name)

    @property
    def size(self) -> int:
        """Length of the buffer in int32 words."""
        return self.part("samples")[0].stop


class StepPacker:
    """Fills buffers for step plans.

    Args:
      max_sequences: R, also the number of slots.
      max_pages: P.
      has_adapters: as of `PackedLayout`.
    """

    def __init__(self, *, max_sequences: int, max_pages: int, has_adapters: bool = False):
        self._max_sequences = max_sequences
        self._max_pages = max_pages
        self._has_adapters = has_adapters
        self._tables = np.zeros((max_sequences, max_pages), np.int32)
        self._known_pages = [0] * max_sequences
        self._settings = np.zeros((max_sequences, len(SAMPLE_FIELDS) - _STEP_FIELDS), np.int32)
        self._views: dict[int, dict[str, tuple[slice, tuple[int, ...]]]] = {}

    def layout(self, tokens: int) -> PackedLayout:
        """The layout of a bucket of `tokens` tokens."""
        return PackedLayout(
            tokens=tokens, rows=self._max_sequences, pages=self._max_pages, has_adapters=self._has_adapters
        )

    def pack(self, plan: StepPlan, tokens: int) -> Int32Array:
        """The buffer of `plan` in a bucket of `tokens` tokens.

        A token whose value is still on the device is packed as -1 - slot. Padding tokens have row -1,
        unused sample rows have slot R, which no write reaches.
        """
        views = self._views.get(tokens)
        if views is None:
            layout = self.layout(tokens)
            views = {
                name: layout.part(name)
                for name in ("counts", "token_ids", "token_rows", "rows", "page_table", "samples")
            }
            self._views[tokens] = views
        buffer = np.zeros(views["samples"][0].stop, np.int32)
        counts, token_ids, token_rows, rows, table, samples = (
            buffer[where].reshape(shape) for where, shape in views.values()
        )
        token_rows.fill(-1)
        samples[:, 1] = self._max_sequences
        counts[:] = plan.num_decode_rows, len(plan.rows)
        slots, sampling = [], []
        for i, row in enumerate(plan.rows):
            slot = row.slot
            self._update_slot(row.sequence, slot, row.admits)
            start, end = row.query_start, row.query_start + row.query_len
            token_ids[start:end] = -1 - slot if row.token_ids is None else row.token_ids
            token_rows[start:end] = i
            rows[i, : len(ROW_FIELDS)] = start, row.query_len, row.context_len, row.sequence.rope_length
            slots.append(slot)
            if self._has_adapters:
                adapter_slot = row.sequence.adapter_slot
                rows[i, len(ROW_FIELDS)] = -1 if adapter_slot is None else adapter_slot
            if row.samples:
                sampling.append((end - 1, slot, row.output_index, row.ban_stops))
        table[: len(slots)] = self._tables[slots]
        if sampling:
            samples[: len(sampling), :_STEP_FIELDS] = sampling
            samples[: len(sampling), _STEP_FIELDS:] = self._settings[[fields[1] for fields in sampling]]
        return buffer

    def _update_slot(self, sequence: Sequence, slot: int, admits: bool) -> None:
        pages = sequence.pages
        known = 0 if admits else self._known_pages[slot]
        if admits:
            self._settings[slot] = _settings(sequence)
        if known < len(pages):
            self._tables[slot, known : len(pages)] = pages[known:]
        self._known_pages[slot] = len(pages)


def _settings(sequence: Sequence) -> Int32Array:
    request = sequence.request
    params = request.params
    integers = np.array(
        [
            uses_history(sequence),
            params.logprobs is not None,
            max(params.top_k, 0),
        ],
        np.int32,
    )
    seed = np.array([request.seed & 0xFFFFFFFF, (request.seed >> 32) & 0xFFFFFFFF], np.uint32).view(np.int32)
    floats = np.array(
        [
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        ],
        np.float32,
    ).view(np.int32)
    return np.concatenate([integers, seed, floats])


def uses_history(sequence: Sequence) -> bool:
    """Whether the sequence's slot needs its history and bias rows on the device."""
    params = sequence.request.params
    return bool(params.needs_history or params.logit_bias or params.min_tokens)
