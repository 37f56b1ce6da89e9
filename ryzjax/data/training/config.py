"""DataConfig: which rows a model is trained on, and how they become batches."""

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
    """Settings of the training data. See docs/data.md.

    Raises:
      ConfigError: A value is out of range, or two values contradict each other.
    """

    data: tuple[str, ...] = ()
    """Files (.jsonl, .json, .parquet, .txt) and Hugging Face data sets (org/name, org/name:split)."""
    form: Form | None = None
    """Form of the rows. By default it is detected from their columns."""
    train_on: TrainOn = "completion"
    """Tokens that are targets: the last answer (completion), every assistant turn (assistant), or all."""
    sequence_tokens: int = 2048
    """Tokens of a row of a batch."""
    packing: bool = True
    """Put several examples into a row. They do not attend to each other."""
    truncate: bool = False
    """Cut examples that are longer than a row, instead of raising an error."""
    drop_long: bool = False
    """Leave out rows of data that are longer than a row of a batch, instead of raising an error."""
    drop_untrained: bool = False
    """Leave out rows without a token to train on (an empty answer, no assistant message), instead of raising an
    error."""
    shuffle: bool = True
    """Shuffle the rows, differently in each epoch."""
    data_seed: int = 0
    """Seed of the shuffle and of the choice of evaluation rows."""
    limit: int | None = None
    """Use only this many rows, from the start of the data."""
    eval_data: tuple[str, ...] = ()
    """Files and data sets to evaluate on."""
    eval_fraction: float = 0.0
    """Share of the rows to hold out for evaluation, if `eval_data` is not set."""
    template_variables: dict[str, str] = field(default_factory=dict)
    """Variables of the chat template, as JSON or text, for example enable_thinking false."""
    window_rows: int = 1024
    """Rows of data that are tokenized and packed at a time."""

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
            raise ConfigError("truncate and drop_long both say how to treat long rows; leave one out")
        if not 0 <= self.data_seed < 2**63:
            raise ConfigError(f"data_seed={self.data_seed}; expected 0 to 2^63 - 1")

    def parsed_variables(self) -> Mapping[str, object]:
        """Returns the template's variables. Valid JSON becomes its value; anything else stays text."""
        return {name: _parsed(value) for name, value in self.template_variables.items()}


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value
