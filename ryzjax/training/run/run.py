"""run_training: one run from its start to its files, with programs, logs, checkpoints, the loop and the loss plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import jax

from ryzjax.data.training import TrainingData
from ryzjax.data.training.prefetch import Prefetcher
from ryzjax.errors import ConfigError, RyzJAXError
from ryzjax.training.config import TrainConfig
from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.objectives.make_objective import make_objective
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.optimizers.optimizer import learning_rate_schedule, make_optimizer
from ryzjax.training.programs import Programs
from ryzjax.training.run.checkpoints import RunCheckpoints
from ryzjax.training.run.json_value import Json
from ryzjax.training.run.loop import Loop
from ryzjax.training.run.plot import plot_log
from ryzjax.training.run.progress import RunProgress
from ryzjax.training.run.result import LoopResult
from ryzjax.training.run.run_file import check_same_run, read_run, write_run
from ryzjax.training.run.run_log import JsonlLog, RunLog, RunLogs, TensorBoardLog, WandbLog
from ryzjax.training.run.speed import speed_of
from ryzjax.training.start.fingerprint import base_fingerprint
from ryzjax.training.start.training_start import TrainingStart

__all__ = ["RunOutcome", "make_programs", "run_training"]

_METRICS = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """The outcome of a run.

    Attributes:
      loop: How the run ended.
      params: Trained arrays of the step to export.
      step: The step to export.
    """

    loop: LoopResult
    params: dict
    step: int


def make_programs(
    model: LoraModel | FullModel,
    params: object,
    *,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    sequence_tokens: int,
    total_steps: int,
) -> Programs:
    """Returns the programs of a run, not yet compiled.

    Args:
      model: The model.
      params: What is trained: arrays, or shapes with shardings.
      optimizer: Settings of the optimizer.
      train: Settings of the run.
      sequence_tokens: Tokens of a row.
      total_steps: Updates of the run.
    """
    objective = make_objective(
        train.objective,
        chunk_tokens=train.loss_chunk_tokens,
        beta=train.beta,
        label_smoothing=train.label_smoothing,
    )
    return Programs(
        model=model,
        objective=objective,
        optimizer=make_optimizer(optimizer, params, total_steps=total_steps),
        rows=train.batch_rows,
        sequence_tokens=sequence_tokens,
        accumulate=train.accumulate,
    )


def run_training(
    start: TrainingStart,
    data: TrainingData,
    *,
    name: str,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    total_steps: int,
    sequence_tokens: int,
    settings: Mapping[str, Json],
    show_progress: bool,
) -> RunOutcome:
    """Trains, and leaves checkpoints, metrics.jsonl, loss.png and run.json in `train.out`.

    Args:
      start: The model and its arrays. The parameters are donated.
      data: Loaders of the training and evaluation data.
      name: Name of the model, for titles.
      optimizer: Settings of the optimizer.
      train: Settings of the run.
      total_steps: Updates of the run.
      sequence_tokens: Tokens of a row.
      settings: All settings, which checkpoints and run.json store.
      show_progress: Show a progress bar on stderr.

    Raises:
      ConfigError: The folder holds another run, or holds this run and `train.resume` is not set.
      TrainingError: A loss or gradient is not finite.
      CheckpointError: A checkpoint cannot be written or read.
      DataError: A row is malformed.
    """
    folder = Path(train.out).expanduser()
    if jax.process_count() > 1:
        raise ConfigError(
            f"training over {jax.process_count()} processes is not supported; use one process for all devices of a "
            "machine"
        )
    if train.export == "best" and data.evaluation is None:
        raise ConfigError("export='best' needs an evaluation; give eval_data or eval_fraction, or export='last'")
    programs = make_programs(
        start.model,
        start.params,
        optimizer=optimizer,
        train=train,
        sequence_tokens=sequence_tokens,
        total_steps=total_steps,
    )
    fingerprint = base_fingerprint(start.frozen.weights) if start.frozen.weights else ""
    with RunCheckpoints(folder / _CHECKPOINTS, fingerprint=fingerprint, keep=train.keep) as checkpoints:
        done = checkpoints.latest_step()
        if done is not None and not train.resume:
            raise ConfigError(
                f"out={train.out!r} has a run of {done} steps in it; resume it (--resume), or name another folder"
            )
        if done is None and train.resume:
            check_same_run(folder, read_run(folder), settings)
            if show_progress:
                print(f"{folder} has no checkpoint yet: the run starts at step 0", file=sys.stderr)
        resumed = done or 0
        write_run(folder, settings)
        progress = RunProgress(total_steps=total_steps, resumed_step=resumed) if show_progress else None
        loader = Prefetcher(data.train)
        log = _logs(folder, train, name, settings, resumed, progress)
        try:
            loop = Loop(
                programs,
                start.frozen,
                config=train,
                config_json=settings,
                train=loader,
                evaluation=data.evaluation,
                total_steps=total_steps,
                schedule=learning_rate_schedule(optimizer, total_steps=total_steps),
                speed=speed_of(start.model, sequence_tokens=sequence_tokens),
                checkpoints=checkpoints,
                log=log,
                message=print if progress is None else progress.message,
            )
            state = programs.start(start.params) if done is None else loop.resume()
            result = loop.run(state)
        finally:
            loader.close()
            log.close()
        step, params = result.step, result.state.params
        best = result.best_step
        if train.export == "best" and best is None:
            print(
                "note: the run ended before its first evaluation, so the last weights are written",
                file=sys.stderr,
            )
        if train.export != "last" and best is not None and best != step:
            step, params = best, checkpoints.restore(best, programs.state).params
    try:
        plot_log(folder / _METRICS, folder / "loss.png", title=f"{name}: {train.objective}")
    except RyzJAXError as error:
        # The trained weights are not written yet, and they are worth more than the plot.
        print(f"{folder / 'loss.png'} was not drawn: {error}", file=sys.stderr)
    ended = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "state"}
    write_run(folder, settings, {**ended, "exported_step": step})
    return RunOutcome(loop=result, params=params, step=step)


def _logs(
    folder: Path,
    train: TrainConfig,
    name: str,
    settings: Mapping[str, Json],
    resumed: int,
    progress: RunProgress | None,
) -> RunLogs:
    logs: list[RunLog] = [JsonlLog(folder / _METRICS, resumed_step=resumed)]
    if train.tensorboard:
        logs.append(TensorBoardLog(folder / "tensorboard", resumed_step=resumed))
    if train.wandb_project is not None:
        logs.append(WandbLog(train.wandb_project, name=folder.name or name, folder=folder / "wandb", config=settings))
    if progress is not None:
        logs.append(progress)
    return RunLogs(logs)
