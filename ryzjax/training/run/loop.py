"""The loop around the compiled step: batches in, metrics out, evaluations and checkpoints between."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from ryzjax.data.training.batch import TrainBatch
from ryzjax.data.training.loader import Batches, BatchLoader
from ryzjax.errors import CheckpointError, DataError, TrainingError
from ryzjax.training.config import TrainConfig
from ryzjax.training.model import Frozen
from ryzjax.training.objectives.objective import StepBatch
from ryzjax.training.optimizers.learning_rate import Schedule
from ryzjax.training.programs import Programs
from ryzjax.training.run.checkpoints import Json, RunCheckpoints
from ryzjax.training.run.early_stopping import EarlyStopping
from ryzjax.training.run.memory import memory_use
from ryzjax.training.run.run_log import RunLog
from ryzjax.training.run.signals import StopSignals
from ryzjax.training.step import TrainState

__all__ = ["Loop", "LoopResult", "Speed"]

_NO_LIMIT = 10**9


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a run ended.

    Attributes:
      state: after the last step.
      step: updates done.
      resumed_step: updates done before this process's part.
      loss: of the last step, NaN where there was none.
      eval_loss: of the last evaluation; None without one.
      best_eval_loss, best_step: the best evaluation.
      stopped_by: "SIGTERM" and the like, "patience", or None for a run that came to its end.
      tokens: that counted in the loss, over the whole run.
      wall_s: of this process's part.
    """

    state: TrainState
    step: int
    resumed_step: int
    loss: float
    eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    stopped_by: str | None
    tokens: int
    wall_s: float

    @property
    def summary(self) -> str:
        """How the run ended, in one line."""
        evaluation = "" if self.eval_loss is None else f", evaluation {self.eval_loss:.4f}"
        stopped = "" if self.stopped_by is None else f" (stopped by {self.stopped_by})"
        if self.step == self.resumed_step:
            return f"the run was finished already, after {self.step} steps{stopped}: loss {self.loss:.4f}{evaluation}"
        return f"{self.step} steps in {self.wall_s:.0f} s{stopped}: loss {self.loss:.4f}{evaluation}"

    @property
    def exit_status(self) -> int:
        """Of a process that ran it: 143 after SIGTERM, as of one that SIGTERM ends, so that whoever restarts what has
        failed goes on with the run; else 0."""
        return 128 + signal.SIGTERM if self.stopped_by == signal.SIGTERM.name else 0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What turns tokens/s into MFU.

    Attributes:
      flops_per_token: of forward and backward.
      peak_flops_per_s: of all devices; None where it is not known.
    """

    flops_per_token: float
    peak_flops_per_s: float | None

    def mfu(self, tokens_per_s: float) -> float | None:
        """Share of the peak."""
        return None if self.peak_flops_per_s is None else self.flops_per_token * tokens_per_s / self.peak_flops_per_s


@dataclass(kw_only=True)
class _Progress:
    """What a checkpoint keeps beside arrays."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stopping: EarlyStopping = field(default_factory=lambda: EarlyStopping(patience=_NO_LIMIT))
    eval_loss: float | None = None
    loss: float | None = None

    def state(self, data: Mapping[str, int], config: Mapping[str, Json]) -> dict[str, Json]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
            "eval_loss": self.eval_loss,
            "loss": self.loss,
            "stopping": dict(self.stopping.state()),
            "data": dict(data),
            "config": dict(config),
        }


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step whose metrics have not been read."""

    step: int
    metrics: dict[str, jax.Array]
    places: tuple[str, ...]
    tokens: int
    epoch: int


class Loop:
    """Runs a training run from its state to its end.

    Metrics are read a step late, so that the device never waits for the host. All that a run's losses depend on is in
    its checkpoints: the loop of a process that was killed, started again with `resume`, makes the same ones.

    Args:
      programs: of the run.
      frozen: arrays for them.
      config: of the run.
      config_json: what to keep of all its settings.
      train: batches of `programs.rows * programs.accumulate` rows.
      evaluation: batches of `programs.rows` rows, or None.
      total_steps: updates of the run.
      schedule: the learning rate by steps done, for the log.
      speed: for the log.
      checkpoints: where the run is kept.
      log: where figures go.
      message: where sentences go.
    """

    def __init__(
        self,
        programs: Programs,
        frozen: Frozen,
        *,
        config: TrainConfig,
        config_json: Mapping[str, Json],
        train: Batches,
        evaluation: BatchLoader | None,
        total_steps: int,
        schedule: Schedule,
        speed: Speed,
        checkpoints: RunCheckpoints,
        log: RunLog,
        message: Callable[[str], None],
    ):
        self.programs = programs
        self.frozen = frozen
        self.config = config
        self.total_steps = total_steps
        self._config_json = dict(config_json)
        self._train, self._evaluation = train, evaluation
        self._schedule = schedule
        self._speed = speed
        self._checkpoints = checkpoints
        self._log = log
        self._message = message
        patience = config.patience or _NO_LIMIT
        self._progress = _Progress(stopping=EarlyStopping(patience=patience, min_delta=config.min_delta))
        self._eval_every = config.eval_every or max(1, -(-total_steps // 10))
        self._save_every = config.save_every or max(1, -(-total_steps // 10))
        self._key = jax.device_put(jax.random.PRNGKey(config.seed), programs.placement.replicated)
        self._saved_step: int | None = None
        self._logged_s = time.perf_counter()
        self._seen_tokens = 0

    def resume(self) -> TrainState:
        """The state of the latest checkpoint; the data goes on behind it.

        Raises:
          CheckpointError: there is none, or it is of another run.
        """
        step = self._checkpoints.latest_step()
        if step is None:
            raise CheckpointError(f"{self._checkpoints.folder}: no checkpoint to go on from; leave out --resume")
        kept = self._checkpoints.read_state(step)
        self._check_settings(kept["config"])
        restored = self._checkpoints.restore(step, self.programs.state)
        stopping, data = kept["stopping"], kept["data"]
        assert isinstance(stopping, dict) and isinstance(data, dict)
        self._train.restore({name: int(value) for name, value in data.items()})  # pyright: ignore[reportArgumentType]
        self._progress = _Progress(
            step=step,
            tokens=int(kept["tokens"]),  # pyright: ignore[reportArgumentType]
            best_step=kept["best_step"],  # pyright: ignore[reportArgumentType]
            best_loss=kept["best_loss"],  # pyright: ignore[reportArgumentType]
            eval_loss=kept["eval_loss"],  # pyright: ignore[reportArgumentType]
            loss=kept.get("loss"),  # pyright: ignore[reportArgumentType]
            stopping=self._progress.stopping.restored(stopping),  # pyright: ignore[reportArgumentType]
        )
        self._saved_step = step
        return restored

    @property
    def step(self) -> int:
        """Updates done."""
        return self._progress.step

    def run(self, state: TrainState) -> LoopResult:
        """To the end, to a signal, or to the end of patience; a checkpoint is kept of the last step in each case.

        A run that came to its end before, or to the end of its patience, is left as it is: nothing is compiled.

        Raises:
          TrainingError: a loss or gradient that is not finite. The latest checkpoint is of before.
          CheckpointError: one cannot be written.
          DataError: a row is bad. What was trained before it is kept in a checkpoint.
        """
        started, resumed_step = time.perf_counter(), self.step
        stopped_by = "patience" if self._progress.stopping.should_stop else None
        if self.step < self.total_steps and stopped_by is None:
            state, stopped_by = self._train_on(state)
        if self._saved_step != self.step:
            self._save(state)
        self._checkpoints.wait()
        progress = self._progress
        return LoopResult(
            state=state,
            step=progress.step,
            resumed_step=resumed_step,
            loss=float("nan") if progress.loss is None else progress.loss,
            eval_loss=progress.eval_loss,
            best_eval_loss=progress.best_loss,
            best_step=progress.best_step,
            stopped_by=stopped_by,
            tokens=progress.tokens,
            wall_s=time.perf_counter() - started,
        )

    def _train_on(self, state: TrainState) -> tuple[TrainState, str | None]:
        """Steps, evaluations and checkpoints until the end; the state, and what ended it before its last step."""
        train = self.programs.compile_train()
        evaluate = None if self._evaluation is None else self.programs.compile_eval()
        self._logged_s = time.perf_counter()
        pending: _Pending | None = None
        stopped_by: str | None = None
        with StopSignals(lambda name: self._message(f"{name}: stopping after this step, with a checkpoint")) as signals:
            while self._progress.step < self.total_steps and stopped_by is None:
                try:
                    batch = next(self._train)
                except DataError as error:
                    raise self._kept(error, state, pending) from error
                now = _Pending(
                    step=self._progress.step + 1,
                    metrics={},
                    places=self._train.batch_places(),
                    tokens=int(np.count_nonzero(batch.segment_ids)),
                    epoch=self._train.epoch,
                )
                state, metrics = train(state, self.frozen, self._placed(batch), self._key)
                self._progress.step += 1
                if pending is not None:
                    self._read(pending)
                pending = replace(now, metrics=metrics)
                if self._is_due(signals.stop_requested):
                    self._read(pending)
                    pending = None
                    if self._is_eval_due(evaluate is not None):
                        assert evaluate is not None
                        try:
                            self._evaluate(evaluate, state)
                        except DataError as error:
                            raise self._kept(error, state, pending) from error
                        if self._progress.stopping.should_stop:
                            stopped_by = "patience"
                    stopped_by = signals.signal_name or stopped_by
                    self._save_if_due(state, stopped_by is not None)
            if pending is not None:
                self._read(pending)
        return state, stopped_by

    def _placed(self, batch: TrainBatch) -> StepBatch:
        """[accumulate, rows, S] on the devices; each process brings its own rows."""
        return StepBatch(*map(_on_devices, batch, self.programs.batch))

    def _read(self, step: _Pending) -> None:
        """Brings a step's metrics to the host and logs them."""
        values = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        if not values.pop("finite"):
            raise TrainingError(
                f"step {step.step}: the loss is {values['loss']:g} and the norm of the gradients "
                f"{values['grad_norm']:g}; its update was left out and the run stopped. Rows of its batch: "
                f"{_some(step.places)}. {self._where_it_is_kept()}: look at the rows, or lower the learning rate, and "
                "go on with --resume"
            )
        self._progress.loss = values["loss"]
        self._progress.tokens += int(values.pop("count")) if self.config.objective == "sft" else step.tokens
        self._seen_tokens += step.tokens
        if step.step % self.config.log_every == 0 or step.step == self.total_steps:
            now = time.perf_counter()
            speed = self._seen_tokens / max(now - self._logged_s, 1e-9)
            self._logged_s, self._seen_tokens = now, 0
            mfu = self._speed.mfu(speed)
            figures = {
                **{name: value for name, value in values.items() if name != "count"},
                "learning_rate": float(self._schedule(step.step - 1)),
                "tokens": float(self._progress.tokens),
                "epoch": float(step.epoch),
                "tokens_per_s": speed,
                **({} if mfu is None else {"mfu": mfu}),
                "memory_bytes": float(memory_use().used_bytes),
            }
            self._log.log(step.step, figures)

    def _where_it_is_kept(self) -> str:
        """The newest checkpoint there is, in words; one that is being written is waited for."""
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            self._message(str(error))
        step = self._checkpoints.latest_step()
        return "There is no checkpoint yet" if step is None else f"The latest checkpoint is of step {step}"

    def _is_due(self, stop: bool) -> bool:
        step = self._progress.step
        return stop or step == self.total_steps or step % self._eval_every == 0 or step % self._save_every == 0

    def _is_eval_due(self, has_data: bool) -> bool:
        step = self._progress.step
        return has_data and (step % self._eval_every == 0 or step == self.total_steps)

    def _evaluate(self, evaluate: jax.stages.Compiled, state: TrainState) -> None:
        assert self._evaluation is not None
        began = time.perf_counter()
        loss = count = 0.0
        details: dict[str, float] = {}
        for index, batch in enumerate(self._evaluation.one_pass()):
            if index == self.config.eval_batches:
                break
            for part in _parts(batch, self.programs.accumulate):
                placed = StepBatch(*map(_on_devices, part, self.programs.eval_batch))
                sums = jax.device_get(evaluate(state.params, self.frozen, placed))
                loss, count = loss + float(sums.loss), count + float(sums.count)
                details = {name: details.get(name, 0.0) + float(value) for name, value in sums.details.items()}
        mean = loss / max(count, 1.0)
        progress = self._progress
        progress.stopping = progress.stopping.after(mean)
        progress.eval_loss = mean
        if progress.best_loss is None or mean < progress.best_loss:
            progress.best_step, progress.best_loss = progress.step, mean
        shown = {f"eval_{name}": value / max(count, 1.0) for name, value in details.items()}
        self._log.log(progress.step, {"eval_loss": mean, **shown})
        self._logged_s += time.perf_counter() - began

    def _save_if_due(self, state: TrainState, stops: bool) -> None:
        step = self._progress.step
        due = stops or step == self.total_steps or step % self._save_every == 0 or step == self._progress.best_step
        if due and step != self._saved_step:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        progress = self._progress
        evaluated = progress.eval_loss if progress.step % self._eval_every == 0 else None
        if progress.step == self.total_steps:
            evaluated = progress.eval_loss
        began = time.perf_counter()
        kept = progress.state(self._train.state(), self._config_json)
        self._checkpoints.save(progress.step, state, kept, eval_loss=evaluated)
        self._saved_step = progress.step
        self._logged_s += time.perf_counter() - began

    def _kept(self, error: DataError, state: TrainState, pending: _Pending | None) -> DataError:
        """The error of a bad row, after a checkpoint of all that was trained before it."""
        if pending is not None:
            self._read(pending)
        if not self.step:
            return error
        if self._saved_step != self.step:
            self._save(state)
        self._checkpoints.wait()
        return DataError(f"{error}. The run is kept as of step {self.step}: go on with --resume")

    def _check_settings(self, kept: Json) -> None:
        """Says which settings differ from the run's; what changes its losses is the user's to know."""
        assert isinstance(kept, dict)
        for name, value in self._config_json.items():
            if name in kept and kept[name] != value:
                self._message(f"note: {name} was {kept[name]!r} in the run so far, and is {value!r} from here on")


def _on_devices(array: np.ndarray, shape: jax.Array) -> jax.Array:
    """This process's rows of a batch, in the shape the program takes; `shape` may be a ShapeDtypeStruct."""
    local = array.reshape(*shape.shape[:-2], -1, shape.shape[-1])
    return jax.make_array_from_process_local_data(shape.sharding, local)


def _parts(batch: TrainBatch, count: int) -> list[TrainBatch]:
    """An evaluation's batch in the parts that are computed at once; parts that are padding alone are left out."""
    parts = [TrainBatch(*(np.array_split(array, count)[i] for array in batch)) for i in range(count)]
    return [part for part in parts if part.loss_weights.any()]


def _some(places: tuple[str, ...]) -> str:
    return ", ".join(places[:20]) + (f" and {len(places) - 20} more" if len(places) > 20 else "")
