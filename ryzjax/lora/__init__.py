"""LoRA: low-rank updates of linear layers, trained on a frozen base and served beside it."""

from ryzjax.lora.adapter import Adapter, LoraWeights, check_adapter
from ryzjax.lora.config import ALL_LINEAR, LoraConfig, LoraInit
from ryzjax.lora.linear import AdaptedLinear, Dropout, attach, low_rank_update

__all__ = [
    "ALL_LINEAR",
    "AdaptedLinear",
    "Adapter",
    "Dropout",
    "LoraConfig",
    "LoraInit",
    "LoraWeights",
    "attach",
    "check_adapter",
    "low_rank_update",
]
