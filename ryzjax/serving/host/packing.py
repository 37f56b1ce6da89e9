"""Packs everything the device must know of a step into one int32 buffer, which needs one transfer.

The tables below are the only description of the buffer. `PackedLayout` derives offsets from them, `StepPacker` fills
the buffer on the host, and `serving.device.unpacking` slices it inside the compiled step. A new field of a step is one
more entry of a table.

    [ counts | token_ids T | token_rows T | rows R x ROW_TABLE | page_table R x P | samples R x SAMPLE_TABLE ]

Values that rarely change (the sampling settings and the pages of a slot) are kept in arrays by slot and gathered, so
that packing a step takes a few numpy calls instead of a Python loop over fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ryzjax.dims import Int32Array
from ryzjax.serving.host.sequence import Sequence
from ryzjax.serving.host.step_plan import StepPlan, StepRow

__all__ = [
    "ADAPTER_SLOT",
    "COUNT_TABLE",
    "ROW_TABLE",
    "SAMPLE_TABLE",
    "Encoding",
    "Field",
    "PackedLayout",
    "StepPacker",
    "column_of",
    "uses_history",
]

Encoding = Literal["int32", "uint32", "bool", "float32"]
"""How a value is stored in an int32 word: as itself, as its bits, or as 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One int32 word of the buffer.

    Attributes:
      name: the name of the field.
      encoding: how its value is stored.
      setting: returns the value of a sequence, for a field that does not change while the sequence has its slot. None
        for a field that differs from step to step.
    """

    name: str
    encoding: Encoding = "int32"
    setting: Callable[[Sequence], float] | None = None

    def word(self, sequence: Sequence) -> int:
        """Returns the word of a setting."""
        assert self.setting is not None
        dtype = {"int32": np.int32, "uint32": np.uint32, "bool": np.int32, "float32": np.float32}[self.encoding]
        return int(np.asarray(self.setting(sequence), dtype).view(np.int32))


def uses_history(sequence: Sequence) -> bool:
    """Returns whether the sequence needs the history and bias rows of its slot on the device."""
    params = sequence.request.params
    return bool(params.needs_history or params.logit_bias or params.min_tokens)


COUNT_TABLE = (Field(name="num_decode_rows"), Field(name="num_rows"))
ROW_TABLE = (
    Field(name="query_start"),
    Field(name="query_len"),
    Field(name="context_len"),
    Field(name="rope_length"),
)
"""The fields of a row. If adapters are served, `ADAPTER_SLOT` follows."""
ADAPTER_SLOT = Field(name="adapter_slot")
"""The slot of a row's adapter, or -1."""
SAMPLE_TABLE = (
    Field(name="token_index"),
    Field(name="slot"),
    Field(name="output_index"),
    Field(name="ban_stops", encoding="bool"),
    Field(name="use_history", encoding="bool", setting=uses_history),
    Field(name="wants_top", encoding="bool", setting=lambda s: s.request.params.logprobs is not None),
    Field(name="top_k", setting=lambda s: max(s.request.params.top_k, 0)),
    Field(name="seed_low", encoding="uint32", setting=lambda s: s.request.seed & 0xFFFFFFFF),
    Field(name="seed_high", encoding="uint32", setting=lambda s: s.request.seed >> 32 & 0xFFFFFFFF),
    Field(name="temperature", encoding="float32", setting=lambda s: s.request.params.temperature),
    Field(name="top_p", encoding="float32", setting=lambda s: s.request.params.top_p),
    Field(name="min_p", encoding="float32", setting=lambda s: s.request.params.min_p),
    Field(name="repetition", encoding="float32", setting=lambda s: s.request.params.repetition_penalty),
    Field(name="presence", encoding="float32", setting=lambda s: s.request.params.presence_penalty),
    Field(name="frequency", encoding="float32", setting=lambda s: s.request.params.frequency_penalty),
)
"""The fields of a row that samples: first those of the step (`_step_values`), then the settings of the sequence."""
_SETTINGS = tuple(field for field in SAMPLE_TABLE if field.setting is not None)
_NUM_STEP_FIELDS = len(SAMPLE_TABLE) - len(_SETTINGS)


def column_of(table: tuple[Field, ...], name: str) -> int:
    """Returns the column of a field in a table."""
    return [field.name for field in table].index(name)


_SLOT_COLUMN = column_of(SAMPLE_TABLE, "slot")


def _step_values(row: StepRow, last_token: int) -> tuple[int, int, int, bool]:
    """Returns the values of the step's fields of `SAMPLE_TABLE`, in its order."""
    return last_token, row.slot, row.output_index, row.ban_stops


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The place of each part of the buffer, for one bucket.

    Attributes:
      tokens: T, the tokens of the bucket.
      rows: R, the most sequences of a step.
      pages: P, the most pages of a sequence.
      has_adapters: whether rows have the slot of their adapter.
    """

    tokens: int
    rows: int
    pages: int
    has_adapters: bool = False

    @property
    def row_table(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return (*ROW_TABLE, ADAPTER_SLOT) if self.has_adapters else ROW_TABLE

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part, in the order of the buffer."""
        return {
            "counts": (len(COUNT_TABLE),),
            "token_ids": (self.tokens,),
            "token_rows": (self.tokens,),
            "rows": (self.rows, len(self.row_table)),
            "page_table": (self.rows, self.pages),
            "samples": (self.rows, len(SAMPLE_TABLE)),
        }

    @property
    def parts(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """The slice of the buffer and the shape of each part."""
        parts: dict[str, tuple[slice, tuple[int, ...]]] = {}
        start = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            parts[name] = slice(start, start + size), shape
            start += size
        return parts

    @property
    def size(self) -> int:
        """The length of the buffer, in int32 words."""
        return sum(math.prod(shape) for shape in self.shapes.values())


class StepPacker:
    """Fills buffers for step plans.

    Args:
      max_sequences: R, the most rows of a step and the number of slots.
      max_pages: P, the most pages of a sequence.
      has_adapters: whether rows have the slot of their adapter.
    """

    def __init__(self, *, max_sequences: int, max_pages: int, has_adapters: bool = False):
        self._max_sequences = max_sequences
        self._max_pages = max_pages
        self._has_adapters = has_adapters
        self._tables = np.zeros((max_sequences, max_pages), np.int32)
        self._known_pages = [0] * max_sequences
        self._settings = np.zeros((max_sequences, len(_SETTINGS)), np.int32)
        self._views: dict[int, dict[str, tuple[slice, tuple[int, ...]]]] = {}

    def layout(self, tokens: int) -> PackedLayout:
        """Returns the layout of a bucket of `tokens` tokens."""
        return PackedLayout(
            tokens=tokens, rows=self._max_sequences, pages=self._max_pages, has_adapters=self._has_adapters
        )

    def pack(self, plan: StepPlan, tokens: int) -> Int32Array:
        """Returns the buffer of `plan` in a bucket of `tokens` tokens.

        A token whose id is still on the device is packed as -1 - slot. Padding tokens have row -1. Unused sample rows
        have slot R, past the last slot, so that no write reaches a slot.
        """
        views = self._views.get(tokens)
        if views is None:
            views = self._views[tokens] = self.layout(tokens).parts
        buffer = np.zeros(views["samples"][0].stop, np.int32)
        counts, token_ids, token_rows, rows, table, samples = (
            buffer[where].reshape(shape) for where, shape in views.values()
        )
        token_rows.fill(-1)
        samples[:, _SLOT_COLUMN] = self._max_sequences
        counts[:] = plan.num_decode_rows, len(plan.rows)
        slots, sampling = [], []
        for i, row in enumerate(plan.rows):
            slot = row.slot
            self._update_slot(row.sequence, slot, row.admits)
            start, end = row.query_start, row.query_start + row.query_len
            token_ids[start:end] = -1 - slot if row.token_ids is None else row.token_ids
            token_rows[start:end] = i
            rows[i, : len(ROW_TABLE)] = start, row.query_len, row.context_len, row.sequence.rope_length
            slots.append(slot)
            if self._has_adapters:
                adapter_slot = row.sequence.adapter_slot
                rows[i, len(ROW_TABLE)] = -1 if adapter_slot is None else adapter_slot
            if row.samples:
                sampling.append(_step_values(row, end - 1))
        table[: len(slots)] = self._tables[slots]
        if sampling:
            samples[: len(sampling), :_NUM_STEP_FIELDS] = sampling
            samples[: len(sampling), _NUM_STEP_FIELDS:] = self._settings[[values[_SLOT_COLUMN] for values in sampling]]
        return buffer

    def _update_slot(self, sequence: Sequence, slot: int, admits: bool) -> None:
        pages = sequence.pages
        known = 0 if admits else self._known_pages[slot]
        if admits:
            self._settings[slot] = [field.word(sequence) for field in _SETTINGS]
        if known < len(pages):
            self._tables[slot, known : len(pages)] = pages[known:]
        self._known_pages[slot] = len(pages)
