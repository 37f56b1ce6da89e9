"""When to stop: evaluation losses that no longer fall."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ryzjax.errors import ConfigError

__all__ = ["EarlyStopping"]


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The best evaluation loss, and how many evaluations since have not improved on it. A pure value.

    Attributes:
      patience: evaluations without improvement after which the run stops, at least 1.
      min_delta: an improvement is a loss more than this below the best.
      best: the best loss so far.
      bad_evaluations: evaluations since.
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
        """Whether patience is at an end."""
        return self.bad_evaluations >= self.patience

    def after(self, eval_loss: float) -> EarlyStopping:
        """The state after another evaluation; a NaN is no improvement."""
        if eval_loss < self.best - self.min_delta:
            return replace(self, best=eval_loss, bad_evaluations=0)
        return replace(self, bad_evaluations=self.bad_evaluations + 1)

    def state(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps of it, as JSON."""
        best = None if self.best == float("inf") else self.best
        return {"best": best, "bad_evaluations": self.bad_evaluations}

    def restored(self, state: dict[str, float | int | None]) -> EarlyStopping:
        """These settings with the state of a checkpoint."""
        best = state["best"]
        return replace(
            self,
            best=float("inf") if best is None else float(best),
            bad_evaluations=int(state["bad_evaluations"] or 0),
        )
