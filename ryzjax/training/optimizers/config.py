"""OptimizerConfig: the algorithm, its settings, and the course of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ryzjax.errors import ConfigError

__all__ = ["OptimizerConfig", "OptimizerName"]

OptimizerName = Literal["adamw", "adamw8bit", "lion", "adafactor", "muon"]

_DEFAULTS: dict[str, dict[str, float]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adamw8bit": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "lion": {"beta1": 0.9, "beta2": 0.99},
    "adafactor": {"eps": 1e-30},
    "muon": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "momentum": 0.95, "adam_learning_rate": 0.0},
}
"""The settings each algorithm has, with what None means; Muon's betas and eps are those of the AdamW beside it."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer of a run. A setting of None is the algorithm's own default; one it does not have is an error."""

    optimizer: OptimizerName = "adamw"
    """adamw (arXiv:1711.05101); adamw8bit, with states of 8 bits (arXiv:2110.02861); lion (arXiv:2302.06675); adafactor
    (arXiv:1804.04235), whose learning rate is relative to each matrix's size; muon (Jordan et al., 2024) for hidden
    matrices, with AdamW for all else."""
    learning_rate: float = 2e-4
    """After the warm-up."""
    beta1: float | None = None
    """Decay rate of the first moment."""
    beta2: float | None = None
    """Decay rate of the second moment; of Lion's momentum."""
    eps: float | None = None
    """Added to the denominator."""
    momentum: float | None = None
    """Of Muon."""
    adam_learning_rate: float | None = None
    """Beside Muon, of embeddings, head, router, norms and biases; None is `learning_rate`."""
    weight_decay: float = 0.0
    """Decoupled, times the learning rate; never on norms, biases and magnitudes."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradients; None does not clip."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """After the warm-up: constant, linear, cosine, or wsd (constant, then a short decay)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None is `warmup_ratio` of the run."""
    warmup_ratio: float = 0.03
    """Part of the run that is warm-up, where `warmup_steps` is not given."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the decay, over `learning_rate`."""
    decay_ratio: float = 0.1
    """Part of the run that is decay, of schedule wsd."""
    lora_plus_ratio: float | None = None
    """Learning rate of a LoRA's B over that of its A (LoRA+, arXiv:2402.12354); None is one rate for both."""

    def __post_init__(self) -> None:
        if self.optimizer not in _DEFAULTS:
            raise ConfigError(f"optimizer {self.optimizer!r}; expected one of {', '.join(_DEFAULTS)}")
        for name in ("beta1", "beta2", "eps", "momentum", "adam_learning_rate"):
            if getattr(self, name) is not None and name not in _DEFAULTS[self.optimizer]:
                raise ConfigError(f"{name}={getattr(self, name)}: {self.optimizer} has no {name}; leave it out")
        for name in ("learning_rate", "adam_learning_rate", "eps", "clip_norm", "lora_plus_ratio"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name}={value}; expected a number above 0")
        for name in ("beta1", "beta2", "momentum", "warmup_ratio"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ConfigError(f"{name}={value}; expected a number from 0 to below 1")
        for name in ("min_lr_ratio", "decay_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a number from 0 to 1")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay={self.weight_decay}; expected 0 or more")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps={self.warmup_steps}; expected 0 or more")

    def setting(self, name: Literal["beta1", "beta2", "eps", "momentum"]) -> float:
        """A setting, or the algorithm's default where it is None."""
        value = getattr(self, name)
        return _DEFAULTS[self.optimizer][name] if value is None else value
