"""finetune: a model, data and settings in; an adapter, or a model, out."""

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
from ryzjax.training.run.checkpoints import Json
from ryzjax.training.run.export import export_adapter, export_model, text_files_of
from ryzjax.training.run.loop import LoopResult
from ryzjax.training.run.run import run_training
from ryzjax.training.run.run_file import earlier_dtype
from ryzjax.training.start.dtype import choose_dtype
from ryzjax.training.start.start import begin_adapter, begin_full

__all__ = ["FinetuneResult", "finetune", "open_base", "settings_of", "stored_dtype"]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a run made.

    Attributes:
      exported: folder of the adapter, in PEFT's layout, or of the model.
      adapter: None where all weights were trained.
      step: whose weights were written.
      loop: how the run ended.
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
    """Trains an adapter beside a frozen model, or all weights of it; see docs/finetuning.md.

    Args:
      base: the model; a string is its name alone.
      data: what it learns from.
      lora: the adapter; None trains every weight.
      optimizer, train: the run; their defaults where None.
      adapter: folder of an adapter to go on from; its ranks and scales count.
      rows, eval_rows: in place of files that `data` names.
      show_progress: a bar on stderr.

    Raises:
      ConfigError: settings that do not fit each other or the model.
      CheckpointError: the model cannot be read, or the run cannot be written or gone on with.
      DataError: rows that nothing can be learnt from.
      TrainingError: the loss is not a number any more.
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
        beginning = begin_full(opened, train, show_progress=show_progress)
    else:
        beginning = begin_adapter(opened, lora, train, adapter=adapter, show_progress=show_progress)
    outcome = run_training(
        beginning,
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
            beginning,
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
    exported, trained = export_adapter(folder, opened, beginning, outcome.params, rounding=rounding)
    return FinetuneResult(exported=exported, adapter=trained, step=outcome.step, loop=outcome.loop)


def open_base(base: BaseConfig) -> OpenModel:
    """A run's model, its weights unread; errors as of `open_model`."""
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
    """All settings of a run, flat, as JSON can hold them: what its checkpoints and run.json keep."""
    flat: dict[str, Json] = {}
    for name, part in parts.items():
        for key, value in ({} if part is None else asdict(part)).items():  # pyright: ignore[reportArgumentType]
            flat[f"{name}.{key}"] = value if isinstance(value, (int, float, bool, str, type(None))) else str(value)
    return {key: value for key, value in flat.items() if key not in ("train.resume", "train.out")}


def stored_dtype(opened: OpenModel, base: BaseConfig) -> str:
    """What all weights are written in: what was asked for, or the checkpoint's own, whatever they were computed in."""
    source = opened.source
    return read_model_config(source, dtype=base.dtype).dtype


def _check(opened: OpenModel, data: DataConfig, lora: LoraConfig | None, adapter: str | None) -> None:
    limit = opened.model.config.max_position
    if data.sequence_tokens > limit:
        raise ConfigError(
            f"sequence_tokens={data.sequence_tokens} is more than the {limit} positions {opened.source.name} was made "
            "for; give at most that"
        )
    if adapter is not None and lora is None:
        raise ConfigError("an adapter to go on from, and training of all weights, exclude each other; leave one out")
    known, table = opened.tokenizer.vocab_size, opened.model.config.vocab_size
    if known > table:
        raise ConfigError(
            f"the tokenizer of {opened.source.name} knows {known} tokens, its model {table}; take one of the same model"
        )
