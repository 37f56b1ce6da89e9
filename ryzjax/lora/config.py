"""LoraConfig: which linear layers are adapted, and how.

LoRA (Hu et al., arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ryzjax.errors import ConfigError
from ryzjax.models.weight_names import split_layer

__all__ = ["ALL_LINEAR", "LoraConfig", "LoraInit", "shortest_endings"]

ALL_LINEAR = "all-linear"
"""The target for all linear layers except the head, routers and experts."""

LoraInit = Literal["default", "gaussian", "pissa", "loftq"]
"""The initialization of A and B. `ryzjax.lora.init.initial_weights` describes each."""

_MAX_RANK = 512


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The hyperparameters of an adapter.

    Layers have their names in `AbstractModel.linears`: "layers.0.attention.q", "layers.0.mlp.down", "lm_head".

    Raises:
      ConfigError: A value is out of range.
    """

    rank: int = 8
    """The rank r: the number of columns of B and of rows of A."""
    alpha: float = 16.0
    """The update is alpha / r * B A, or alpha / sqrt(r) * B A with use_rslora."""
    dropout: float = 0.0
    """The dropout rate of the input of A in training."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Layers to adapt, by the end of their names (attention.q, lm_head); all-linear means all but head and routers."""
    exclude: tuple[str, ...] = ()
    """Layers not to adapt, by the end of their names."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Regular expression -> rank of the layers whose name, or its end after a dot, it matches. The first one wins."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Regular expression -> alpha, with the same rules as rank_pattern."""
    use_rslora: bool = False
    """Scale the update by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn the magnitude of each row separately from its direction (arXiv:2402.09353)."""
    init: LoraInit = "default"
    """How A and B are initialized: default (B zero), gaussian, pissa (arXiv:2404.02948) or loftq (arXiv:2310.08659)."""

    def __post_init__(self) -> None:
        for name, rank in (("rank", self.rank), *((f"rank_pattern[{p!r}]", r) for p, r in self.rank_pattern.items())):
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= _MAX_RANK:
                raise ConfigError(f"LoRA {name}={rank!r}; expected an integer from 1 to {_MAX_RANK}")
        alphas = (("alpha", self.alpha), *((f"alpha_pattern[{p!r}]", a) for p, a in self.alpha_pattern.items()))
        for name, alpha in alphas:
            if not (math.isfinite(alpha) and alpha > 0):
                raise ConfigError(f"LoRA {name}={alpha!r}; expected a positive number")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"LoRA dropout={self.dropout!r}; expected 0 or more, and less than 1")
        if not self.targets:
            raise ConfigError(f"LoRA targets are empty; name layers ('attention.q', 'mlp.down'), or {ALL_LINEAR!r}")
        if self.init not in get_args(LoraInit):
            raise ConfigError(f"LoRA init={self.init!r}; expected one of {', '.join(get_args(LoraInit))}")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"LoRA pattern {pattern!r} is not a regular expression: {error}") from error

    def rank_of(self, layer: str) -> int:
        """Returns the rank of a layer."""
        return next((rank for pattern, rank in self.rank_pattern.items() if _matches(pattern, layer)), self.rank)

    def alpha_of(self, layer: str) -> float:
        """Returns alpha of a layer."""
        return next((alpha for pattern, alpha in self.alpha_pattern.items() if _matches(pattern, layer)), self.alpha)

    def scale_of(self, layer: str) -> float:
        """Returns the factor of B A of a layer."""
        rank = self.rank_of(layer)
        return self.alpha_of(layer) / (math.sqrt(rank) if self.use_rslora else rank)

    def choose(self, linears: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Returns the names of the layers to adapt, in the model's order.

        Args:
          linears: Layer name -> shape of its weight, as in `AbstractModel.linears`.

        Raises:
          ConfigError: No layer's name ends in a target, a target is a stack of experts, or no layer is left.
        """
        if self.targets == (ALL_LINEAR,):
            chosen = [name for name, shape in linears.items() if len(shape) == 2 and not _is_special(name)]
        else:
            for target in self.targets:
                found = [name for name in linears if _ends_in(name, (target,))]
                if not found:
                    known = sorted({split_layer(name)[1] for name in linears})
                    raise ConfigError(
                        f"LoRA target {target!r} is not a linear layer of this model; it has {', '.join(known)}"
                    )
                if any(len(linears[name]) != 2 for name in found):
                    raise ConfigError(
                        f"LoRA target {target!r} is a stack of experts, which is not supported; name attention layers"
                    )
            chosen = [name for name in linears if _ends_in(name, self.targets)]
        chosen = [name for name in chosen if not _ends_in(name, self.exclude)]
        if not chosen:
            raise ConfigError(f"LoRA targets {list(self.targets)} without {list(self.exclude)} leave no layer to adapt")
        return tuple(chosen)


def shortest_endings(chosen: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Returns the shortest endings, cut at a dot, that match the chosen layers and none of the other `names`."""
    wanted = dict.fromkeys(chosen)
    unwanted = {ending for name in names if name not in wanted for ending in _endings(name)}
    return tuple(dict.fromkeys(next((e for e in _endings(name) if e not in unwanted), name) for name in wanted))


def _endings(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[i:]) for i in reversed(range(len(parts))))


def _matches(pattern: str, layer: str) -> bool:
    """Matches a pattern as PEFT does: to the whole name, or to its end after a dot."""
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer) is not None


def _ends_in(name: str, endings: Iterable[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_special(name: str) -> bool:
    return name == "lm_head" or name.endswith(".router")
