"""The host's side of serving: page pool, sequences and scheduler, in plain Python without jax."""

from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.host.sequence import Sequence, SequenceState
from ryzjax.serving.host.step_plan import StepPlan, StepRow

__all__ = ["PagePool", "Scheduler", "Sequence", "SequenceState", "StepPlan", "StepRow"]
