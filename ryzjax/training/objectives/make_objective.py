"""Makes an objective from its name and settings."""

from __future__ import annotations

from typing import Literal

from ryzjax.errors import ConfigError
from ryzjax.training.objectives.dpo import DPO
from ryzjax.training.objectives.objective import Objective
from ryzjax.training.objectives.orpo import ORPO
from ryzjax.training.objectives.sft import SFT

__all__ = ["ObjectiveName", "make_objective"]

ObjectiveName = Literal["sft", "dpo", "orpo"]


def make_objective(
    name: ObjectiveName, *, chunk_tokens: int, beta: float = 0.1, label_smoothing: float = 0.0
) -> Objective:
    """Returns an objective.

    Args:
      name: "sft", "dpo" or "orpo".
      chunk_tokens: Tokens whose logits are in memory at once.
      beta: For DPO and ORPO.
      label_smoothing: For DPO.

    Raises:
      ConfigError: A value is out of range.
    """
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens={chunk_tokens}; expected 1 or more")
    if not beta > 0:
        raise ConfigError(f"beta={beta}; expected a positive number")
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={label_smoothing}; expected 0 or more, and less than 0.5")
    if name == "dpo":
        return DPO(beta=beta, label_smoothing=label_smoothing, chunk_tokens=chunk_tokens)
    return ORPO(beta=beta, chunk_tokens=chunk_tokens) if name == "orpo" else SFT(chunk_tokens=chunk_tokens)
