"""The command ryzjax pretrain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from ryzjax.cli.arguments import Section
from ryzjax.data.training.config import DataConfig
from ryzjax.errors import ConfigError
from ryzjax.training.config import TrainConfig
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.start.new_model import NewModelConfig

__all__ = ["Pretrain"]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train all weights of a model, starting from random ones or from --begin-from, on files or on synthetic rows.

    Writes OUT/model in Hugging Face's layout, loss.png, metrics.jsonl, run.json, and checkpoints that --resume
    continues. --config demo, followed by demo-2, makes RyzJAX's demo model.
    """

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA")] = ()
    """Files (.txt, .jsonl, .json, .parquet) and Hugging Face data sets (org/name, org/name:split), the same as
    --data."""
    config: str | None = None
    """TOML file with any of these flags, or the name of one in configs/train. A flag overrides it."""
    new_model: Section[NewModelConfig] = field(default_factory=NewModelConfig)
    data_config: Section[DataConfig] = field(default_factory=DataConfig)
    optimizer_config: Section[OptimizerConfig] = field(default_factory=OptimizerConfig)
    train: Section[TrainConfig] = field(default_factory=TrainConfig)

    def run(self) -> int:
        """Trains. Returns the exit status."""
        import logging
        import sys

        from ryzjax.training.pretrain import pretrain

        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if self.files and self.data_config.data:
            raise ConfigError("data is named twice, as DATA and as --data; give one of them")
        data = replace(self.data_config, data=self.files or self.data_config.data)
        result = pretrain(self.new_model, data, optimizer=self.optimizer_config, train=self.train)
        print(result.loop.summary)
        print(f"{result.exported}: serve it with: ryzjax serve {result.exported}")
        return result.loop.exit_status
