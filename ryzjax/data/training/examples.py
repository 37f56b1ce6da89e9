"""ExampleRows: reads rows by index as examples that fit a sequence."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ryzjax.data.row import Row
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training.example import Example
from ryzjax.data.training.forms import Form, read_sample
from ryzjax.data.training.render import Renderer
from ryzjax.data.training.report import DataReport
from ryzjax.data.training.rows import Rows, read_row, row_place
from ryzjax.errors import UntrainedRowError

__all__ = ["ExampleLimits", "ExampleRows", "RowsOfForm"]

_FINGERPRINT_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class RowsOfForm:
    """Rows that all have the same form."""

    rows: Rows
    form: Form


@dataclass(frozen=True, kw_only=True)
class ExampleLimits:
    """How rows that do not fit are treated.

    Attributes:
      max_tokens: Most tokens of an example; None if documents are cut into sequences anyway.
      truncate: Cut longer examples, instead of raising an error.
      drop_long: Leave out rows with longer examples, instead of raising an error.
      drop_untrained: Leave out rows without a token to train on (an empty answer, no assistant message), instead of
        raising an error.
    """

    max_tokens: int | None
    truncate: bool = False
    drop_long: bool = False
    drop_untrained: bool = False


class ExampleRows:
    """Examples of the rows of several sources, which follow each other.

    Args:
      parts: The sources.
      tokenizer: The model's tokenizer.
      renderer: Turns samples into tokens.
      limits: How rows that do not fit are treated.
    """

    def __init__(self, parts: Sequence[RowsOfForm], tokenizer: Tokenizer, renderer: Renderer, *, limits: ExampleLimits):
        self._parts = parts
        self._renderer = renderer
        self._limits = limits
        self._has_template = tokenizer.chat_template is not None

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._parts)

    def place(self, index: int) -> str:
        """Returns where a row comes from, such as "data.jsonl:3"."""
        part, at = self._locate(index)
        return row_place(part.rows, at)

    def read(self, index: int) -> tuple[list[Example], DataReport]:
        """Returns the examples of a row (none if it is left out) and its counts.

        Raises:
          UntrainedRowError: The row has nothing to train on, and such rows are not left out.
          DataError: The row is malformed or too long. The message says where it is.
        """
        part, at = self._locate(index)
        row = read_row(part.rows, at)
        try:
            sample = read_sample(row, part.form, has_template=self._has_template)
            return self._fit(self._renderer.examples(sample, row), row, pair=part.form == "preference")
        except UntrainedRowError:
            if not self._limits.drop_untrained:
                raise
            return [], DataReport(rows=1, dropped_untrained=1)

    def fingerprint(self) -> int:
        """Returns a checksum of the number of rows and of up to 33 rows, spread from the first to the last.

        Other rows almost always have another checksum.
        """
        if len(self) == 0:
            return 0
        last = len(self) - 1
        picked = sorted({round(i * last / _FINGERPRINT_ROWS) for i in range(_FINGERPRINT_ROWS + 1)})
        rows = [dict(read_row(part.rows, at).values) for part, at in map(self._locate, picked)]
        forms = [(part.form, len(part.rows)) for part in self._parts]
        return zlib.crc32(json.dumps([forms, rows], default=str).encode("utf-8", "surrogatepass"))

    def _locate(self, index: int) -> tuple[RowsOfForm, int]:
        for part in self._parts:
            if index < len(part.rows):
                return part, index
            index -= len(part.rows)
        raise IndexError(index)

    def _fit(self, examples: list[Example], row: Row, *, pair: bool) -> tuple[list[Example], DataReport]:
        kept: list[Example] = []
        truncated = 0
        limit = self._limits.max_tokens
        for example in examples:
            if limit is not None and len(example) > limit:
                if self._limits.drop_long:
                    return [], DataReport(rows=1, dropped_long=1)
                if not self._limits.truncate:
                    raise row.error(
                        f"is {len(example):,} tokens long; expected at most sequence_tokens={limit:,}. Raise that, or "
                        "set drop_long to leave such rows out, or truncate to cut them"
                    )
                example = example.cut(limit)
                truncated += 1
            kept.append(example)
        trained = [example for example in kept if example.num_trained]
        if not trained or (pair and len(trained) < len(kept)):
            why = f" in its first {limit:,} tokens, to which it was cut" if truncated else ""
            raise row.untrained(f"has no trained token{why}")
        return trained, DataReport(
            rows=1,
            examples=len(trained),
            truncated=truncated,
            tokens=sum(map(len, trained)),
            trained_tokens=sum(example.num_trained for example in trained),
        )
