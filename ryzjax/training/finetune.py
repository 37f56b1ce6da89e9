"""finetune: trains an adapter beside a frozen model, or all weights of a model, and writes the result."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ryzjax.data.training import DataConfig, open_data
from ryzjax.data.training.rows import Rows
from ryzjax.errors import ConfigError
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.open_model import OpenModel, open_model
from ryzjax.lora.adapter import Adapter, BaseQuantization
from ryzjax.lora.config import LoraConfig
from ryzjax.training.config import BaseConfig, TrainConfig
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.run.export import export_adapter, export_model, text_files_of
from ryzjax.training.run.json_value import Json
from ryzjax.training.run.result import LoopResult
from ryzjax.training.run.run import run_training
from ryzjax.training.run.run_file import earlier_dtype
from ryzjax.training.start.dtype import choose_dtype
from ryzjax.training.start.training_start import start_with_adapter, start_with_all_weights

__all__ = ["FinetuneResult", "finetune", "open_base", "settings_of", "stored_dtype"]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
      exported: Folder of the written adapter (PEFT's layout) or model (Hugging Face's layout).
      adapter: The trained adapter; None if all weights were trained.
      step: Step whose weights were written.
      loop: How the run ended.
    """

    exported: Path
    adapter: Adapter | None
    step: int
    loop: LoopResult


def finetune(
    base: BaseConfig | str,
    data: DataConfig,
    *,
    lora: LoraConfig | None,
    optimizer: OptimizerConfig | None = None,
    train: TrainConfig | None = None,
    adapter: str | None = None,
    rows: Rows | None = None,
    eval_rows: Rows | None = None,
    show_progress: bool = True,
) -> FinetuneResult:
    """Trains an adapter beside a frozen model, or all of its weights. See docs/finetuning.md.

    Args:
      base: The model, or its name.
      data: The training data.
      lora: The adapter's settings; None trains every weight.
      optimizer: The optimizer's settings; None takes the defaults.
      train: The run's settings; None takes the defaults.
      adapter: Folder of an adapter to continue training. Its ranks and scales are kept.
      rows: Training rows, in place of the files that `data` names.
      eval_rows: Evaluation rows, in place of the files that `data` names.
      show_progress: Show a progress bar on stderr.

    Raises:
      ConfigError: Settings contradict each other or do not fit the model.
      CheckpointError: The model cannot be read, or the run cannot be written or resumed.
      DataError: A row is malformed or has nothing to train on.
      TrainingError: The loss or a gradient is not finite.
    """
    base = BaseConfig(model=base) if isinstance(base, str) else base
    optimizer, train = optimizer or OptimizerConfig(), train or TrainConfig()
    folder = Path(train.out).expanduser()
    choice = choose_dtype(base.dtype, earlier=earlier_dtype(folder, "base.dtype") if train.resume else None)
    opened = open_base(replace(base, dtype=choice.dtype))
    computed_in = opened.model.config.dtype
    _check(opened, data, lora, adapter)
    if show_progress:
        print(choice.message(computed_in), file=sys.stderr)
    form = None if train.objective == "sft" else "preference"
    loaders = open_data(
        data, opened.tokenizer, batch_rows=train.rows_per_update, form=form, rows=rows, eval_rows=eval_rows
    )
    total_steps = train.max_steps or loaders.train.count_batches(train.epochs, show_progress=show_progress)
    if lora is None:
        start = start_with_all_weights(opened, train, show_progress=show_progress)
    else:
        start = start_with_adapter(opened, lora, train, adapter=adapter, show_progress=show_progress)
    outcome = run_training(
        start,
        loaders,
        name=Path(opened.source.name).name,
        optimizer=optimizer,
        train=train,
        total_steps=total_steps,
        sequence_tokens=data.sequence_tokens,
        settings=settings_of(
            base=replace(base, dtype=computed_in), data=data, lora=lora, optimizer=optimizer, train=train
        ),
        show_progress=show_progress,
    )
    if lora is None:
        exported = export_model(
            folder,
            start,
            outcome.params,
            dtype=stored_dtype(opened, base),
            config=opened.source.config,
            generation=opened.source.generation,
            copy_texts=text_files_of(opened),
        )
        return FinetuneResult(exported=exported, adapter=None, step=outcome.step, loop=outcome.loop)
    rounding = (
        None if base.weights in ("auto", "bf16") else BaseQuantization(weights=base.weights, group=base.weights_group)
    )
    exported, trained = export_adapter(folder, opened, start, outcome.params, rounding=rounding)
    return FinetuneResult(exported=exported, adapter=trained, step=outcome.step, loop=outcome.loop)


def open_base(base: BaseConfig) -> OpenModel:
    """Opens a run's model without reading its weights. Raises the errors of `open_model`."""
    return open_model(
        base.model,
        revision=base.model_revision,
        dtype=base.dtype,
        load_format=base.load_format,
        layout=base.layout,
        weights=base.weights,
        weights_group=base.weights_group,
    )


def settings_of(**parts: object) -> dict[str, Json]:
    """Returns all settings of a run as one flat dict of JSON values, which checkpoints and run.json store."""
    flat: dict[str, Json] = {}
    for name, part in parts.items():
        for key, value in ({} if part is None else asdict(part)).items():  # pyright: ignore[reportArgumentType]
            flat[f"{name}.{key}"] = value if isinstance(value, (int, float, bool, str, type(None))) else str(value)
    return {key: value for key, value in flat.items() if key not in ("train.resume", "train.out")}


def stored_dtype(opened: OpenModel, base: BaseConfig) -> str:
    """Returns the dtype to write all weights in: the one that was asked for, or else the checkpoint's own, whatever
    dtype the run computes in."""
    source = opened.source
    return read_model_config(source, dtype=base.dtype).dtype


def _check(opened: OpenModel, data: DataConfig, lora: LoraConfig | None, adapter: str | None) -> None:
    limit = opened.model.config.max_position
    if data.sequence_tokens > limit:
        raise ConfigError(
            f"sequence_tokens={data.sequence_tokens} is more than the {limit} positions {opened.source.name} supports; "
            "give at most that many"
        )
    if adapter is not None and lora is None:
        raise ConfigError("an adapter to continue cannot be combined with training all weights; leave out one of them")
    known, table = opened.tokenizer.vocab_size, opened.model.config.vocab_size
    if known > table:
        raise ConfigError(
            f"the tokenizer of {opened.source.name} has {known} tokens, but its model has {table}; use the "
            "tokenizer of the same model"
        )
