"""Shows a batch of training data on a terminal, with trained tokens in colour, or in brackets without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training.batch import TrainBatch
from ryzjax.data.training.report import DataReport

__all__ = ["legend", "report_table", "show_row"]

_TRAINED, _GIVEN = "bold green", "dim"
_TRAINED_SPECIAL, _GIVEN_SPECIAL = "bold black on green", "dim reverse"
_BRACKETS = ("\u27e6", "\u27e7")
_LINE_END = "\u21b5"


class _Run(NamedTuple):
    """Consecutive tokens of a segment that look alike."""

    start: int
    end: int
    trained: bool
    special: bool


def legend(console: Console) -> Text:
    """Returns the meaning of the colours or brackets."""
    if _has_colour(console):
        return Text.assemble(
            ("trained", _TRAINED), "  ", ("special, trained", _TRAINED_SPECIAL), "  ",
            ("given", _GIVEN), "  ", ("special, given", _GIVEN_SPECIAL), f"  {_LINE_END} line end",
        )  # fmt: skip
    return Text(f"{_BRACKETS[0]}trained{_BRACKETS[1]}  {_LINE_END} line end")


def show_row(console: Console, batch: TrainBatch, index: int, places: Sequence[str], tokenizer: Tokenizer) -> None:
    """Prints a row of a batch, segment by segment.

    Args:
      console: The terminal.
      batch: The batch.
      index: Index of the row in the batch.
      places: Where each segment comes from.
      tokenizer: The model's tokenizer.
    """
    segment_ids = batch.segment_ids[index]
    used, size = int(np.count_nonzero(segment_ids)), len(segment_ids)
    trained = int(np.count_nonzero(batch.loss_weights[index]))
    count = int(segment_ids.max())
    console.rule(
        Text(f"row {index}: {_count(count, 'segment')}, {used:,} of {size:,} tokens, {trained:,} trained"),
        align="left",
        style="cyan",
    )
    for number in range(1, count + 1):
        where = np.flatnonzero(segment_ids == number)
        weights, targets = batch.loss_weights[index, where], batch.targets[index, where]
        counts = f"{_count(len(where), 'token')}, {np.count_nonzero(weights)} trained"
        console.print(Text(f"segment {number}, {places[number - 1]}: {counts}", style="cyan"), soft_wrap=True)
        body = _segment_text(batch.token_ids[index, where], weights, targets, tokenizer, colour=_has_colour(console))
        console.print(body, soft_wrap=True)
    if used < size:
        console.print(Text(f"{_count(size - used, 'token')} of padding", style="cyan"))


def report_table(report: DataReport, *, batches: int, batch_tokens: int) -> Table:
    """Returns a table with the counts of all rows.

    Args:
      report: The counts.
      batches: Batches of an epoch.
      batch_tokens: Tokens of a batch, including padding.
    """
    table = Table(title="data", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    places = batches * batch_tokens
    share = report.trained_tokens / max(report.tokens, 1)
    for name, value in (
        ("rows", f"{report.rows:,}"),
        ("examples", f"{report.examples:,}"),
        ("dropped, too long", f"{report.dropped_long:,}"),
        ("dropped, nothing trained", f"{report.dropped_untrained:,}"),
        ("truncated", f"{report.truncated:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("trained tokens", f"{report.trained_tokens:,} ({share:.1%})"),
        ("tokens an example", f"{report.tokens / max(report.examples, 1):,.1f}"),
        ("batches an epoch", f"{batches:,}"),
        ("padding", f"{1 - report.tokens / max(places, 1):.1%}"),
    ):
        table.add_row(name, value)
    return table


def _segment_text(
    token_ids: np.ndarray, weights: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer, *, colour: bool
) -> Text:
    ids = token_ids.tolist()
    # Each weight belongs to the next token. The token of the last weight is in another row.
    trained = [False, *(weights[:-1] > 0).tolist()]
    if weights[-1]:
        ids, trained = [*ids, int(targets[-1])], [*trained, True]
    text = Text()
    shown = ""
    open_bracket = False
    for run in _runs(ids, trained, tokenizer.special_token_ids):
        # Taken as a difference, because the text of a token depends on the tokens before it.
        until = tokenizer.decode(ids[: run.end], skip_special_tokens=False)
        piece = until[len(shown) :].replace("\n", f"{_LINE_END}\n")
        shown = until
        if not colour and run.trained != open_bracket:
            text.append(_BRACKETS[0] if run.trained else _BRACKETS[1])
            open_bracket = run.trained
        if run.trained:
            text.append(piece, _TRAINED_SPECIAL if run.special else _TRAINED)
        else:
            text.append(piece, _GIVEN_SPECIAL if run.special else _GIVEN)
    if open_bracket:
        text.append(_BRACKETS[1])
    if weights[-1]:
        text.append(" (the last token is only a target; the text continues in another row)", "cyan")
    return text


def _runs(ids: Sequence[int], trained: Sequence[bool], special: frozenset[int]) -> Iterator[_Run]:
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start] or (ids[i] in special) != (ids[start] in special):
            yield _Run(start, i, trained[start], ids[start] in special)
            start = i


def _has_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
