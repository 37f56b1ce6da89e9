"""`DataConfig`: which rows a model is trained on, and how they become batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ryzjax.data.training.forms import Form
from ryzjax.data.training.render import TrainOn
from ryzjax.errors import ConfigError

__all__ = ["DataConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data; see docs/data.md.

    Raises:
      ConfigError: a value is out of range, or two contradict each other.
    """

    data: tuple[str, ...] = ()
    """Files (.jsonl, .json, .parquet, .txt) and Hugging Face data sets (org/name, org/name:split)."""
    form: Form | None = None
    """What the rows are; found out by their columns where it is not given."""
    train_on: TrainOn = "completion"
    """Which tokens are targets: the last answer (completion), every assistant turn (assistant), or all."""
    sequence_tokens: int = 2048
    """Length of a row of a batch."""
    packing: bool = True
    """Put several examples into a row; they do not see each other."""
    truncate: bool = False
    """Cut examples that are longer than a row, instead of an error."""
    drop_long: bool = False
    """Leave out rows that are longer than a row of a batch, instead of an error."""
    drop_untrained: bool = False
    """Leave out rows that have nothing to train on (an empty answer, no assistant message), instead of an error."""
    shuffle: bool = True
    """Shuffle the rows, anew for each epoch."""
    data_seed: int = 0
    """Of the shuffle, and of the choice of rows to evaluate on."""
    limit: int | None = None
    """Use only the first rows of the data."""
    eval_data: tuple[str, ...] = ()
    """Files and data sets to evaluate on."""
    eval_fraction: float = 0.0
    """Part of the rows to evaluate on instead, and not to train on."""
    template_variables: dict[str, str] = field(default_factory=dict)
    """Variables of the chat template, as JSON or text, such as enable_thinking false."""
    window_rows: int = 1024
    """Rows that are tokenized and packed at a time."""

    def __post_init__(self) -> None:
        if self.sequence_tokens < 2:
            raise ConfigError(f"sequence_tokens={self.sequence_tokens}; expected at least 2")
        if self.window_rows < 1:
            raise ConfigError(f"window_rows={self.window_rows}; expected at least 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit}; expected at least 1 row, or no limit")
        if not 0 <= self.eval_fraction < 1:
            raise ConfigError(f"eval_fraction={self.eval_fraction}; expected at least 0 and less than 1")
        if self.eval_fraction and self.eval_data:
            raise ConfigError(
                f"eval_fraction={self.eval_fraction} and eval_data={self.eval_data}: both say what to evaluate on; "
                "leave one out"
            )
        if self.truncate and self.drop_long:
            raise ConfigError("truncate and drop_long both say what becomes of long rows; leave one out")
        if not 0 <= self.data_seed < 2**63:
            raise ConfigError(f"data_seed={self.data_seed}; expected 0 to 2^63 - 1")

    def parsed_variables(self) -> Mapping[str, object]:
        """The template's variables: what is valid JSON as its value, the rest as text."""
        return {name: _parsed(value) for name, value in self.template_variables.items()}


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value
