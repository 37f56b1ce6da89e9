"""open_data: opens the rows of a config, detects their form, holds some out for evaluation, and returns loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training.config import DataConfig
from ryzjax.data.training.examples import ExampleLimits, ExampleRows, RowsOfForm
from ryzjax.data.training.forms import Form, detect_form
from ryzjax.data.training.loader import BatchLoader
from ryzjax.data.training.permutation import permuted
from ryzjax.data.training.render import Renderer
from ryzjax.data.training.row_files import open_rows
from ryzjax.data.training.rows import Rows, SelectedRows, read_row
from ryzjax.data.training.windows import Arrangement, Windows
from ryzjax.errors import ConfigError, DataError

__all__ = ["TrainingData", "open_data"]

_HOLDOUT_STREAM = 3
_PIECE_ROWS = 16
_CHARS_PER_TOKEN = 4


class TrainingData(NamedTuple):
    """The loaders of one run.

    Attributes:
      train: Endless batches.
      evaluation: One epoch in the order of the rows, or None. `one_pass` starts it again.
      forms: Forms of the training rows.
    """

    train: BatchLoader
    evaluation: BatchLoader | None
    forms: tuple[Form, ...]


def open_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    batch_rows: int,
    form: Form | None = None,
    rows: Rows | None = None,
    eval_rows: Rows | None = None,
    drop_last: bool = False,
) -> TrainingData:
    """Opens training data.

    Args:
      config: Which data, and how it becomes batches.
      tokenizer: The model's tokenizer.
      batch_rows: Rows of a batch over all processes. A preference pair takes two rows.
      form: Form that the rows must have, such as "preference"; None takes the config's form or detects it.
      rows: Training rows in place of `config.data`, for example computed ones.
      eval_rows: Evaluation rows in place of `config.eval_data`.
      drop_last: Leave out the last training batch of an epoch if it is not full, instead of padding it.

    Raises:
      ConfigError: The config names no data, or the evaluation rows cannot be held out as asked.
      DataError: Data is missing, malformed, or of forms that cannot be mixed.
      MissingExtraError: A package that reads the data is not installed.
    """
    if (rows is None) == (not config.data):
        raise ConfigError("data names nothing to train on" if rows is None else "data and rows are both given")
    form = form or config.form
    parts = _parts(_open_all(config.data, config) if rows is None else [rows], form, config.limit)
    held_out: list[RowsOfForm] = []
    if config.eval_fraction:
        parts, held_out = _hold_out(parts, config)
    elif config.eval_data or eval_rows is not None:
        held_out = _parts(_open_all(config.eval_data, config) if eval_rows is None else [eval_rows], form, None)
    seed = config.data_seed if config.shuffle else None
    train = BatchLoader(_windows(parts, tokenizer, config, seed=seed), batch_rows=batch_rows, drop_last=drop_last)
    evaluation = None
    if held_out:
        evaluation = BatchLoader(_windows(held_out, tokenizer, config, seed=None), batch_rows=batch_rows, epochs=1)
    return TrainingData(train, evaluation, tuple(dict.fromkeys(part.form for part in parts)))


def _open_all(sources: Sequence[str], config: DataConfig) -> list[Rows]:
    piece_chars = _PIECE_ROWS * _CHARS_PER_TOKEN * config.sequence_tokens
    return [open_rows(source, text_piece_chars=piece_chars) for source in sources]


def _parts(opened: Sequence[Rows], form: Form | None, limit: int | None) -> list[RowsOfForm]:
    parts: list[RowsOfForm] = []
    left = limit
    for rows in opened:
        if left is not None:
            rows = rows if len(rows) <= left else SelectedRows(rows, range(left))
            left -= len(rows)
        if len(rows):
            parts.append(RowsOfForm(rows=rows, form=form or detect_form(read_row(rows, 0))))
    forms = {part.form for part in parts}
    for alone in ("preference", "text"):
        if alone in forms and len(forms) > 1:
            raise DataError(
                f"data of the forms {', '.join(sorted(forms))} cannot be mixed; expected {alone} alone, or data "
                "without it. If a form was detected wrongly, name it with form"
            )
    return parts


def _hold_out(parts: Sequence[RowsOfForm], config: DataConfig) -> tuple[list[RowsOfForm], list[RowsOfForm]]:
    """Returns (training rows, evaluation rows): a fixed random choice, in the order of the rows."""
    size = sum(len(part.rows) for part in parts)
    count = round(size * config.eval_fraction)
    if not 0 < count < size:
        raise ConfigError(
            f"eval_fraction={config.eval_fraction} of {size:,} rows leaves {size - count:,} to train on and {count:,} "
            "to evaluate on; expected at least one of each"
        )
    is_held_out = permuted(np.arange(size), size, config.data_seed, _HOLDOUT_STREAM) < count
    train: list[RowsOfForm] = []
    held_out: list[RowsOfForm] = []
    start = 0
    for part in parts:
        mask = is_held_out[start : start + len(part.rows)]
        start += len(part.rows)
        for kept, chosen in ((train, ~mask), (held_out, mask)):
            if chosen.any():
                kept.append(RowsOfForm(rows=SelectedRows(part.rows, np.flatnonzero(chosen)), form=part.form))
    return train, held_out


def _windows(parts: Sequence[RowsOfForm], tokenizer: Tokenizer, config: DataConfig, *, seed: int | None) -> Windows:
    arrangement = _arrangement(parts, config)
    renderer = Renderer(tokenizer, train_on=config.train_on, variables=config.parsed_variables())
    limits = ExampleLimits(
        max_tokens=None if arrangement == "cut" else config.sequence_tokens,
        truncate=config.truncate,
        drop_long=config.drop_long,
        drop_untrained=config.drop_untrained,
    )
    return Windows(
        examples=ExampleRows(parts, tokenizer, renderer, limits=limits),
        sequence_tokens=config.sequence_tokens,
        arrangement=arrangement,
        seed=seed,
        window_rows=config.window_rows,
    )


def _arrangement(parts: Sequence[RowsOfForm], config: DataConfig) -> Arrangement:
    if parts[0].form == "preference":
        return "pairs"
    if not config.packing:
        return "single"
    return "cut" if parts[0].form == "text" else "packed"
