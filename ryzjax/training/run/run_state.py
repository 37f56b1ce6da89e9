"""RunState: the numbers of a run that its checkpoints keep beside the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from ryzjax.training.run.early_stopping import EarlyStopping
from ryzjax.training.run.json_value import Json

__all__ = ["RunState"]


@dataclass(kw_only=True)
class RunState:
    """The numbers of a run that a resumed run needs.

    Attributes:
      stopping: State of early stopping.
      step: Updates done.
      tokens: Tokens that counted in the loss.
      best_step: Step of the lowest evaluation loss; None before the first evaluation.
      best_loss: Lowest evaluation loss; None before the first evaluation.
      eval_loss: Loss of the last evaluation; None before the first.
      loss: Loss of the last step whose metrics were read; None before the first.
    """

    stopping: EarlyStopping
    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    eval_loss: float | None = None
    loss: float | None = None

    def to_json(self, data: Mapping[str, int], config: Mapping[str, Json]) -> dict[str, Json]:
        """Returns what a checkpoint stores.

        Args:
          data: State of the batch loader.
          config: All settings of the run.
        """
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

    @classmethod
    def from_json(cls, kept: Mapping[str, Json], stopping: EarlyStopping) -> RunState:
        """Returns the state that a checkpoint stores.

        Args:
          kept: What `to_json` returned. Checkpoints of earlier versions have no "loss".
          stopping: Early stopping with the settings of this run.
        """
        return cls(
            step=int(cast("int", kept["step"])),
            tokens=int(cast("int", kept["tokens"])),
            best_step=cast("int | None", kept["best_step"]),
            best_loss=cast("float | None", kept["best_loss"]),
            eval_loss=cast("float | None", kept["eval_loss"]),
            loss=cast("float | None", kept.get("loss")),
            stopping=stopping.restored(cast("dict[str, float | int | None]", kept["stopping"])),
        )

    def record_evaluation(self, loss: float) -> None:
        """Takes the loss of an evaluation after `step` updates into account."""
        self.stopping = self.stopping.after(loss)
        self.eval_loss = loss
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss
