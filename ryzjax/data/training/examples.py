"""Rows by index, as examples that fit a sequence."""

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
    """Rows that are all written in one form."""

    rows: Rows
    form: Form


@dataclass(frozen=True, kw_only=True)
class ExampleLimits:
    """What an example may be.

    Attributes:
      max_tokens: of an example; None where documents are cut into sequences anyway.
      truncate: cut longer ones, instead of an error.
      drop_long: leave out rows with longer ones, instead of an error.
      drop_untrained: leave out rows that have nothing to train on, instead of an error: an empty answer, no message of
        the assistant's, no trained token.
    """

    max_tokens: int | None
    truncate: bool = False
    drop_long: bool = False
    drop_untrained: bool = False


class ExampleRows:
    """Examples of the rows of several sources, one source behind the other.

    Args:
      parts: the sources.
      tokenizer: of the model.
      renderer: makes tokens of rows.
      limits: what is done with rows that do not fit.
    """

    def __init__(self, parts: Sequence[RowsOfForm], tokenizer: Tokenizer, renderer: Renderer, *, limits: ExampleLimits):
        self._parts = parts
        self._renderer = renderer
        self._limits = limits
        self._has_template = tokenizer.chat_template is not None

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._parts)

    def place(self, index: int) -> str:
        """Where a row is, such as "data.jsonl:3"."""
        part, at = self._locate(index)
        return row_place(part.rows, at)

    def read(self, index: int) -> tuple[list[Example], DataReport]:
        """The examples of a row, none where it is left out, and what happened to it.

        Raises:
          UntrainedRowError: the row has nothing to train on, and such rows are not left out.
          DataError: the row is malformed or too long; the message says where it is.
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
        """A number that differs, as good as always, for other rows: made of how many there are, and of some of them
        from the first to the last."""
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
