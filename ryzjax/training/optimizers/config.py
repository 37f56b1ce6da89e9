"""OptimizerConfig: the algorithm, its settings, and the learning rate schedule."""

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
"""Settings of each algorithm and their defaults. The betas and eps of Muon are those of the AdamW beside it."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer of a run.

    A setting of None takes the algorithm's default. Setting one that the algorithm does not have is an error.

    Raises:
      ConfigError: A value is out of range, or the algorithm does not have the setting.
    """

    optimizer: OptimizerName = "adamw"
    """adamw (arXiv:1711.05101); adamw8bit, with 8-bit states (arXiv:2110.02861); lion (arXiv:2302.06675); adafactor
    (arXiv:1804.04235), whose learning rate is relative to the size of each matrix; muon (Jordan et al., 2024) for
    hidden matrices, with AdamW for everything else."""
    learning_rate: float = 2e-4
    """Learning rate after the warm-up."""
    beta1: float | None = None
    """Decay rate of the first moment."""
    beta2: float | None = None
    """Decay rate of the second moment, or of Lion's momentum."""
    eps: float | None = None
    """Added to the denominator."""
    momentum: float | None = None
    """Momentum of Muon."""
    adam_learning_rate: float | None = None
    """With Muon, the learning rate of embeddings, head, router, norms and biases. Defaults to `learning_rate`."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate. Norms, biases and magnitudes never decay."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradients. None does not clip."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up: constant, linear, cosine, or wsd (constant, then a short decay)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. Defaults to `warmup_ratio` of the run."""
    warmup_ratio: float = 0.03
    """Share of the run that is warm-up, if `warmup_steps` is not set."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end of the decay, as a share of `learning_rate`."""
    decay_ratio: float = 0.1
    """Share of the run that is decay, for schedule wsd."""
    lora_plus_ratio: float | None = None
    """Learning rate of a LoRA's B divided by that of its A (LoRA+, arXiv:2402.12354). None uses one rate for both."""

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
        """Returns a setting, or the algorithm's default if it is None."""
        value = getattr(self, name)
        return _DEFAULTS[self.optimizer][name] if value is None else value
