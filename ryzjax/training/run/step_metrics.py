"""StepMetrics: brings the metrics of steps to the host and logs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from ryzjax.errors import TrainingError
from ryzjax.training.config import TrainConfig
from ryzjax.training.optimizers.learning_rate import Schedule
from ryzjax.training.run.memory import memory_use
from ryzjax.training.run.run_log import RunLog
from ryzjax.training.run.run_state import RunState
from ryzjax.training.run.speed import Speed

__all__ = ["PendingStep", "StepMetrics"]


@dataclass(frozen=True, kw_only=True)
class PendingStep:
    """A step whose metrics are still on the devices.

    Attributes:
      step: Updates done after it.
      metrics: Metrics of the train step, see `make_train_step`.
      places: Where the rows of its batch come from, such as "data.jsonl:3".
      tokens: Tokens of its batch, padding excluded.
      epoch: Epoch of its batch.
    """

    step: int
    metrics: dict[str, jax.Array]
    places: tuple[str, ...]
    tokens: int
    epoch: int


class StepMetrics:
    """Reads the metrics of steps, keeps the run's loss and token count, and logs figures.

    Args:
      config: The run's settings.
      total_steps: Updates of the whole run.
      schedule: Learning rate by steps done.
      speed: Turns tokens/s into MFU.
      log: Where figures are logged.
      latest_checkpoint: Says which checkpoint is the latest, for the message of a loss that is not finite.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        total_steps: int,
        schedule: Schedule,
        speed: Speed,
        log: RunLog,
        latest_checkpoint: Callable[[], str],
    ):
        self._config = config
        self._total_steps = total_steps
        self._schedule = schedule
        self._speed = speed
        self._log = log
        self._latest_checkpoint = latest_checkpoint
        self._logged_s = time.perf_counter()
        self._tokens_since_log = 0

    def restart_clock(self) -> None:
        """Starts the time over which the next tokens/s are measured."""
        self._logged_s = time.perf_counter()

    @contextmanager
    def clock_paused(self) -> Iterator[None]:
        """Excludes the time spent inside (an evaluation, a checkpoint) from tokens/s."""
        began = time.perf_counter()
        yield
        self._logged_s += time.perf_counter() - began

    def read(self, pending: PendingStep, state: RunState) -> None:
        """Waits for a step, brings its metrics to the host, updates `state` and logs every `log_every` steps.

        Raises:
          TrainingError: The loss or the gradient is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        if not values.pop("finite"):
            raise TrainingError(
                f"step {pending.step}: the loss is {values['loss']:g} and the norm of the gradients is "
                f"{values['grad_norm']:g}. The update was not applied and the run stopped. Rows of the batch: "
                f"{_first_places(pending.places)}. {self._latest_checkpoint()}: look at the rows, or lower the "
                "learning rate, and continue with --resume"
            )
        count = values.pop("count")
        state.loss = values["loss"]
        state.tokens += int(count) if self._config.objective == "sft" else pending.tokens
        self._tokens_since_log += pending.tokens
        if pending.step % self._config.log_every == 0 or pending.step == self._total_steps:
            self._write(pending, values, state.tokens)

    def _write(self, pending: PendingStep, values: dict[str, float], tokens: int) -> None:
        now = time.perf_counter()
        tokens_per_s = self._tokens_since_log / max(now - self._logged_s, 1e-9)
        self._logged_s, self._tokens_since_log = now, 0
        mfu = self._speed.mfu(tokens_per_s)
        figures = {
            **values,
            "learning_rate": float(self._schedule(pending.step - 1)),
            "tokens": float(tokens),
            "epoch": float(pending.epoch),
            "tokens_per_s": tokens_per_s,
            **({} if mfu is None else {"mfu": mfu}),
            "memory_bytes": float(memory_use().used_bytes),
        }
        self._log.log(pending.step, figures)


def _first_places(places: tuple[str, ...]) -> str:
    return ", ".join(places[:20]) + (f" and {len(places) - 20} more" if len(places) > 20 else "")
