"""The command ryzjax finetune."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ryzjax.api_key import api_key_or_environment
from ryzjax.cli.arguments import Section
from ryzjax.data.training.config import DataConfig
from ryzjax.errors import ConfigError
from ryzjax.lora.config import LoraConfig
from ryzjax.training.config import BaseConfig, TrainConfig
from ryzjax.training.optimizers.config import OptimizerConfig

__all__ = ["Finetune"]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train an adapter beside a frozen model (LoRA; QLoRA with --weights int4), or all its weights (--method full).

    Writes OUT/adapter in PEFT's layout (or OUT/model), loss.png, metrics.jsonl, run.json, and checkpoints that --resume
    continues. `--config sft` and others are recipes. --plan prints the memory that a run needs, without reading
    weights.
    """

    base: Section[BaseConfig]
    config: str | None = None
    """TOML file with any of these flags, or the name of one in configs/train. A flag overrides it."""
    method: Literal["lora", "full"] = "lora"
    """Train an adapter (lora) or every weight (full)."""
    data_config: Section[DataConfig] = field(default_factory=DataConfig)
    lora: Section[LoraConfig] = field(default_factory=LoraConfig)
    optimizer_config: Section[OptimizerConfig] = field(default_factory=OptimizerConfig)
    train: Section[TrainConfig] = field(default_factory=TrainConfig)
    adapter: str | None = None
    """Folder of an adapter to continue training, instead of a new one."""
    plan: bool = False
    """Compile the real step, print the bytes it needs on each device and ways to save memory, and stop."""
    publish: str | None = None
    """URL of a running server (started with --allow-lora-updating) to upload the adapter to at the end."""
    publish_name: str | None = None
    """Name of the adapter on that server. Defaults to the name of OUT."""
    api_key: str | None = field(default=None, repr=False)
    """API key of that server. Defaults to the environment variable RYZJAX_API_KEY."""

    def run(self) -> int:
        """Trains, or prints the plan. Returns the exit status."""
        import logging
        import sys

        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        lora = self.lora if self.method == "lora" else None
        if self.plan:
            return self._plan(lora)
        if self.publish is not None and lora is None:
            raise ConfigError("--publish uploads an adapter, but --method full trains none; leave out --publish")
        # Read now, so that a bad key is reported before the training.
        api_key = None if self.publish is None else api_key_or_environment(self.api_key)
        from ryzjax.client.publish import publish_adapter
        from ryzjax.training.finetune import finetune

        result = finetune(
            self.base,
            self.data_config,
            lora=lora,
            optimizer=self.optimizer_config,
            train=self.train,
            adapter=self.adapter,
        )
        print(result.loop.summary)
        if lora is None:
            print(f"{result.exported}: serve it with: ryzjax serve {result.exported}")
            return result.loop.exit_status
        name = self.publish_name or Path(self.train.out).name
        print(f"{result.exported}: serve it with: ryzjax serve {self._served()} --lora {name}={result.exported}")
        if self.publish is not None:
            print(publish_adapter(self.publish, name, result.exported, api_key=api_key))
        return result.loop.exit_status

    def _served(self) -> str:
        """Returns the arguments that make ryzjax serve load the base as it was trained on."""
        base = self.base
        if base.weights == "auto":
            return base.model
        return f"{base.model} --weights {base.weights} --weights-group {base.weights_group}"

    def _plan(self, lora: LoraConfig | None) -> int:
        from rich.console import Console

        from ryzjax.training.plan import plan_table, plan_training

        plan = plan_training(
            self.base,
            lora=lora,
            optimizer=self.optimizer_config,
            train=self.train,
            sequence_tokens=self.data_config.sequence_tokens,
        )
        console = Console()
        console.print(plan.dtype_message, highlight=False)
        console.print(plan_table(plan))
        return 0
