"""EarlyStopping: ends a run when evaluation losses no longer fall."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ryzjax.errors import ConfigError

__all__ = ["EarlyStopping"]


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The best evaluation loss, and the number of evaluations since then without improvement. An immutable value.

    Attributes:
      patience: Evaluations without improvement after which the run stops, at least 1.
      min_delta: A loss is an improvement if it is lower than the best by more than this.
      best: The best loss so far.
      bad_evaluations: Evaluations since the best one.
    """

    patience: int
    min_delta: float = 0.0
    best: float = float("inf")
    bad_evaluations: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"patience={self.patience}; expected 1 evaluation or more")
        if not self.min_delta >= 0:
            raise ConfigError(f"min_delta={self.min_delta}; expected 0 or more")

    @property
    def should_stop(self) -> bool:
        """Whether `patience` evaluations have passed without improvement."""
        return self.bad_evaluations >= self.patience

    def after(self, eval_loss: float) -> EarlyStopping:
        """Returns the state after another evaluation. A NaN is no improvement."""
        if eval_loss < self.best - self.min_delta:
            return replace(self, best=eval_loss, bad_evaluations=0)
        return replace(self, bad_evaluations=self.bad_evaluations + 1)

    def state(self) -> dict[str, float | int | None]:
        """Returns what a checkpoint stores, as JSON."""
        best = None if self.best == float("inf") else self.best
        return {"best": best, "bad_evaluations": self.bad_evaluations}

    def restored(self, state: dict[str, float | int | None]) -> EarlyStopping:
        """Returns these settings with the state that a checkpoint stores."""
        best = state["best"]
        return replace(
            self,
            best=float("inf") if best is None else float(best),
            bad_evaluations=int(state["bad_evaluations"] or 0),
        )
