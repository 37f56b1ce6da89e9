"""LoopResult: how a run ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from ryzjax.training.step import TrainState

__all__ = ["LoopResult"]


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a run ended.

    Attributes:
      state: The state after the last step.
      step: Updates done over the whole run.
      resumed_step: Updates done before this process resumed the run; 0 for a new run.
      loss: Loss of the last step; NaN if there was none.
      eval_loss: Loss of the last evaluation; None without one.
      best_eval_loss: Lowest evaluation loss; None without an evaluation.
      best_step: Step of the lowest evaluation loss; None without an evaluation.
      stopped_by: Name of the signal that stopped the run ("SIGTERM"), "patience" for early stopping, or None if the run
        did all its steps.
      tokens: Tokens that counted in the loss, over the whole run.
      wall_s: Seconds that this process trained.
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
        """One line that says how the run ended."""
        evaluation = "" if self.eval_loss is None else f", evaluation {self.eval_loss:.4f}"
        stopped = "" if self.stopped_by is None else f" (stopped by {self.stopped_by})"
        if self.step == self.resumed_step:
            return f"the run was finished already, after {self.step} steps{stopped}: loss {self.loss:.4f}{evaluation}"
        return f"{self.step} steps in {self.wall_s:.0f} s{stopped}: loss {self.loss:.4f}{evaluation}"

    @property
    def exit_status(self) -> int:
        """Exit status for the process: 143 after SIGTERM, so that a supervisor restarts and resumes the run; else 0."""
        return 128 + signal.SIGTERM if self.stopped_by == signal.SIGTERM.name else 0
