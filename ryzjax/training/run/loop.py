"""Loop: runs the compiled step over the data, with evaluations and checkpoints between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ryzjax.data.training.loader import Batches, BatchLoader
from ryzjax.errors import CheckpointError, DataError
from ryzjax.training.config import TrainConfig
from ryzjax.training.model import Frozen
from ryzjax.training.optimizers.learning_rate import Schedule
from ryzjax.training.programs import Programs
from ryzjax.training.run.checkpoints import RunCheckpoints
from ryzjax.training.run.device_batch import place_batch
from ryzjax.training.run.early_stopping import EarlyStopping
from ryzjax.training.run.evaluator import Evaluator
from ryzjax.training.run.json_value import Json
from ryzjax.training.run.result import LoopResult
from ryzjax.training.run.run_log import RunLog
from ryzjax.training.run.run_state import RunState
from ryzjax.training.run.signals import StopSignals
from ryzjax.training.run.speed import Speed
from ryzjax.training.run.step_metrics import PendingStep, StepMetrics
from ryzjax.training.step import TrainState

__all__ = ["Loop"]

_NO_LIMIT = 10**9


class Loop:
    """Trains from a state to the end of the run.

    The loop reads the metrics of a step only after it has started the next one, so the devices never wait for the host.
    A checkpoint holds everything that the run's losses depend on: a process that is killed and started again with
    `resume` computes the same losses.

    Args:
      programs: The programs of the run.
      frozen: Frozen arrays of the run.
      config: The run's settings.
      config_json: All settings, as checkpoints store them.
      train: Batches of `programs.rows * programs.accumulate` rows.
      evaluation: Batches of the same size, or None.
      total_steps: Updates of the whole run.
      schedule: Learning rate by steps done, for the log.
      speed: Turns tokens/s into MFU, for the log.
      checkpoints: The run's checkpoints.
      log: Where figures are logged.
      message: Shows a sentence to the user.
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
        self._checkpoints = checkpoints
        self._log = log
        self._message = message
        patience = config.patience or _NO_LIMIT
        self._state = RunState(stopping=EarlyStopping(patience=patience, min_delta=config.min_delta))
        self._metrics = StepMetrics(
            config=config,
            total_steps=total_steps,
            schedule=schedule,
            speed=speed,
            log=log,
            latest_checkpoint=self._latest_checkpoint,
        )
        tenth = max(1, -(-total_steps // 10))
        self._eval_every = config.eval_every or tenth
        self._save_every = config.save_every or tenth
        self._key = jax.device_put(jax.random.PRNGKey(config.seed), programs.placement.replicated)
        self._saved_step: int | None = None

    def resume(self) -> TrainState:
        """Restores the latest checkpoint and moves the data to the batch after it.

        Raises:
          CheckpointError: There is no checkpoint, or it belongs to another run.
        """
        step = self._checkpoints.latest_step()
        if step is None:
            raise CheckpointError(f"{self._checkpoints.folder}: no checkpoint to resume from; leave out --resume")
        kept = self._checkpoints.read_state(step)
        self._note_changed_settings(kept["config"])
        restored = self._checkpoints.restore(step, self.programs.state)
        data = kept["data"]
        assert isinstance(data, dict)
        self._train.restore({name: int(value) for name, value in data.items()})  # pyright: ignore[reportArgumentType]
        self._state = RunState.from_json(kept, self._state.stopping)
        self._state.step = self._saved_step = step
        return restored

    @property
    def step(self) -> int:
        """Updates done."""
        return self._state.step

    def run(self, state: TrainState) -> LoopResult:
        """Trains until the last step, a signal or early stopping, and saves a checkpoint of the last step.

        A run that has ended already, by its last step or by early stopping, is left unchanged and nothing is compiled.

        Raises:
          TrainingError: A loss or gradient is not finite. The latest checkpoint is from before that step.
          CheckpointError: A checkpoint cannot be written.
          DataError: A row is malformed. A checkpoint of the last step before it is saved first.
        """
        started, resumed_step = time.perf_counter(), self.step
        stopped_by = "patience" if self._state.stopping.should_stop else None
        if self.step < self.total_steps and stopped_by is None:
            state, stopped_by = self._train_steps(state)
        if self._saved_step != self.step:
            self._save(state)
        self._checkpoints.wait()
        return LoopResult(
            state=state,
            step=self.step,
            resumed_step=resumed_step,
            loss=float("nan") if self._state.loss is None else self._state.loss,
            eval_loss=self._state.eval_loss,
            best_eval_loss=self._state.best_loss,
            best_step=self._state.best_step,
            stopped_by=stopped_by,
            tokens=self._state.tokens,
            wall_s=time.perf_counter() - started,
        )

    def _train_steps(self, state: TrainState) -> tuple[TrainState, str | None]:
        """Returns the state after the last step, and what stopped the run early, if anything did."""
        train = self.programs.compile_train()
        evaluator = self._make_evaluator()
        self._metrics.restart_clock()
        pending: PendingStep | None = None
        stopped_by: str | None = None
        with StopSignals(lambda name: self._message(f"{name}: stopping after this step, with a checkpoint")) as signals:
            while self.step < self.total_steps and stopped_by is None:
                try:
                    batch = next(self._train)
                except DataError as error:
                    raise self._saved_before(error, state, pending) from error
                places, epoch = self._train.batch_places(), self._train.epoch
                state, metrics = train(state, self.frozen, place_batch(batch, self.programs.batch), self._key)
                self._state.step += 1
                if pending is not None:
                    self._read(pending)
                tokens = int(np.count_nonzero(batch.segment_ids))
                pending = PendingStep(step=self.step, metrics=metrics, places=places, tokens=tokens, epoch=epoch)
                if self._is_due(signals.stop_requested):
                    self._read(pending)
                    pending = None
                    if evaluator is not None and self._is_eval_due():
                        try:
                            self._evaluate(evaluator, state)
                        except DataError as error:
                            raise self._saved_before(error, state, pending) from error
                        if self._state.stopping.should_stop:
                            stopped_by = "patience"
                    stopped_by = signals.signal_name or stopped_by
                    self._save_if_due(state, stopped_by is not None)
            if pending is not None:
                self._read(pending)
        return state, stopped_by

    def _make_evaluator(self) -> Evaluator | None:
        if self._evaluation is None:
            return None
        return Evaluator(self.programs, self.frozen, self._evaluation, max_batches=self.config.eval_batches)

    def _read(self, step: PendingStep) -> None:
        self._metrics.read(step, self._state)

    def _evaluate(self, evaluator: Evaluator, state: TrainState) -> None:
        with self._metrics.clock_paused():
            loss, details = evaluator.evaluate(state.params)
            self._state.record_evaluation(loss)
            self._log.log(self.step, {"eval_loss": loss, **{f"eval_{name}": value for name, value in details.items()}})

    def _is_due(self, stop: bool) -> bool:
        """Whether an evaluation, a checkpoint or the end follows this step."""
        return stop or self._is_eval_due() or self.step % self._save_every == 0

    def _is_eval_due(self) -> bool:
        return self.step % self._eval_every == 0 or self.step == self.total_steps

    def _save_if_due(self, state: TrainState, stops: bool) -> None:
        last = stops or self.step == self.total_steps
        due = last or self.step % self._save_every == 0 or self.step == self._state.best_step
        if due and self.step != self._saved_step:
            self._save(state)

    def _save(self, state: TrainState) -> None:
        eval_loss = self._state.eval_loss if self._is_eval_due() else None
        with self._metrics.clock_paused():
            kept = self._state.to_json(self._train.state(), self._config_json)
            self._checkpoints.save(self.step, state, kept, eval_loss=eval_loss)
            self._saved_step = self.step

    def _saved_before(self, error: DataError, state: TrainState, pending: PendingStep | None) -> DataError:
        """Saves a checkpoint of the last step, and returns the error of a malformed row with a note of it."""
        if pending is not None:
            self._read(pending)
        if not self.step:
            return error
        if self._saved_step != self.step:
            self._save(state)
        self._checkpoints.wait()
        return DataError(f"{error}. A checkpoint of step {self.step} is saved: continue with --resume")

    def _latest_checkpoint(self) -> str:
        """Says which checkpoint is the latest, after a wait for the one that is being written."""
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            self._message(str(error))
        step = self._checkpoints.latest_step()
        return "There is no checkpoint yet" if step is None else f"The latest checkpoint is of step {step}"

    def _note_changed_settings(self, kept: Json) -> None:
        """Tells the user which settings differ from those of the run so far."""
        assert isinstance(kept, dict)
        for name, value in self._config_json.items():
            if name in kept and kept[name] != value:
                self._message(f"note: {name} was {kept[name]!r} in the run so far, and is {value!r} from here on")
