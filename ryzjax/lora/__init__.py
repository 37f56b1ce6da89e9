"""LoRA: low-rank updates of linear layers, trained on a frozen base model and served beside it.

Importing this package does not import JAX. Its names do so on first use, except `LoraConfig`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzjax.lora.adapter import Adapter, LoraWeights, check_adapter
    from ryzjax.lora.config import ALL_LINEAR, LoraConfig, LoraInit
    from ryzjax.lora.init import InitialWeights, initial_weights
    from ryzjax.lora.linear import AdaptedLinear, Dropout, attach, low_rank_update
    from ryzjax.lora.merge import delta, difference, merged
    from ryzjax.lora.model import AdaptedModel, adapted
    from ryzjax.lora.norms import row_norms

__all__ = [
    "ALL_LINEAR",
    "AdaptedLinear",
    "AdaptedModel",
    "Adapter",
    "Dropout",
    "InitialWeights",
    "LoraConfig",
    "LoraInit",
    "LoraWeights",
    "adapted",
    "attach",
    "check_adapter",
    "delta",
    "difference",
    "initial_weights",
    "low_rank_update",
    "merged",
    "row_norms",
]

_HOME = {
    "ALL_LINEAR": "ryzjax.lora.config",
    "AdaptedLinear": "ryzjax.lora.linear",
    "AdaptedModel": "ryzjax.lora.model",
    "Adapter": "ryzjax.lora.adapter",
    "Dropout": "ryzjax.lora.linear",
    "InitialWeights": "ryzjax.lora.init",
    "LoraConfig": "ryzjax.lora.config",
    "LoraInit": "ryzjax.lora.config",
    "LoraWeights": "ryzjax.lora.adapter",
    "adapted": "ryzjax.lora.model",
    "attach": "ryzjax.lora.linear",
    "check_adapter": "ryzjax.lora.adapter",
    "delta": "ryzjax.lora.merge",
    "difference": "ryzjax.lora.merge",
    "initial_weights": "ryzjax.lora.init",
    "low_rank_update": "ryzjax.lora.linear",
    "merged": "ryzjax.lora.merge",
    "row_norms": "ryzjax.lora.norms",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ryzjax.lora' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
