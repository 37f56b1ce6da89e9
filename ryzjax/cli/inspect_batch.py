"""The command ryzjax inspect-batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from ryzjax.cli.arguments import Section
from ryzjax.data.training.config import DataConfig
from ryzjax.errors import ConfigError

__all__ = ["InspectBatch"]


@dataclass(frozen=True, kw_only=True)
class InspectBatch:
    """Show what a model would be trained on: batches token by token, with trained tokens in colour, and counts.

    Reads all rows, and stops at the first malformed one with its file and line.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Directory with a tokenizer, GGUF file, or Hugging Face id. Weights are not read."""
    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA")] = ()
    """Files (.jsonl, .json, .parquet, .txt) and Hugging Face data sets (org/name, org/name:split), the same as
    --data."""
    data_config: Section[DataConfig] = field(default_factory=DataConfig)
    config: str | None = None
    """TOML file with any of these flags. A flag overrides it."""
    chat_template: str | None = None
    """Jinja file that replaces the model's own template."""
    batch_rows: int = 8
    """Rows of a batch."""
    batches: int = 1
    """Batches to show."""
    rows: int = 4
    """Rows of each batch to show."""
    summary: bool = True
    """Read all rows and print counts. --no-summary only shows the batches, without reading all rows."""

    def run(self) -> int:
        """Prints batches and counts. Returns the exit status."""
        import logging
        import sys
        from pathlib import Path

        from rich.console import Console
        from rich.text import Text

        from ryzjax.checkpoint.source import resolve_source
        from ryzjax.cli.batch_view import legend, report_table, show_row
        from ryzjax.data.tokenizer import Tokenizer
        from ryzjax.data.training.open import open_data

        for name in ("batch_rows", "batches", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.files and self.data_config.data:
            raise ConfigError(
                f"data is named twice, as {self.files} and as --data {self.data_config.data}; leave one out"
            )
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        config = replace(self.data_config, data=self.files or self.data_config.data)
        path = Path(self.model).expanduser()
        folder = path if path.exists() else resolve_source(self.model, load_format="dummy").directory
        tokenizer = Tokenizer.load(folder, chat_template=self.chat_template)
        data = open_data(config, tokenizer, batch_rows=self.batch_rows)
        console = Console(highlight=False)
        trained = "all" if data.forms == ("text",) else config.train_on
        console.print(Text(f"form: {', '.join(data.forms)}; trained: {trained}"), legend(console), sep="\n")
        for number in range(self.batches):
            batch = next(data.train)
            places = data.train.segment_places()
            console.print(Text(f"\nbatch {number}", style="bold"))
            for index in range(min(self.rows, len(places))):
                show_row(console, batch, index, places[index], tokenizer)
            if len(places) > self.rows:
                console.print(f"{len(places) - self.rows} more rows; --rows shows more")
        if self.summary:
            for title, loader in (("train", data.train), ("evaluation", data.evaluation)):
                if loader is not None:
                    batches = loader.count_batches(show_progress=sys.stderr.isatty())
                    table = report_table(
                        loader.scan(), batches=batches, batch_tokens=self.batch_rows * config.sequence_tokens
                    )
                    table.title = title
                    console.print(table)
        return 0
