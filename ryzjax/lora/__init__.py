"""LoRA: low-rank updates of linear layers, trained on a frozen base and served beside it."""

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
