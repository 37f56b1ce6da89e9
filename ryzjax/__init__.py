"""RyzJAX: one Flax model definition that is served, sharded, quantized and fine-tuned.

    from ryzjax import LLM, SamplingParams, finetune, DataConfig, LoraConfig

Importing this package does not import JAX. Names that need JAX, such as `LLM` and `finetune`, import it on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzjax.data.training.config import DataConfig
    from ryzjax.lora.config import LoraConfig
    from ryzjax.serving.frontend.llm import LLM
    from ryzjax.serving.messages.request import EmbeddingOutput, RequestOutput
    from ryzjax.serving.messages.sampling_params import SamplingParams
    from ryzjax.training.config import BaseConfig, TrainConfig
    from ryzjax.training.finetune import finetune
    from ryzjax.training.optimizers.config import OptimizerConfig
    from ryzjax.training.pretrain import pretrain
    from ryzjax.training.start.new_model import NewModelConfig

__all__ = [
    "LLM",
    "BaseConfig",
    "DataConfig",
    "EmbeddingOutput",
    "LoraConfig",
    "NewModelConfig",
    "OptimizerConfig",
    "RequestOutput",
    "SamplingParams",
    "TrainConfig",
    "__version__",
    "finetune",
    "pretrain",
]

try:
    __version__ = version("ryzjax")
except PackageNotFoundError:  # the package runs from a checkout and is not installed
    __version__ = "0+unknown"

_HOME = {
    "LLM": "ryzjax.serving.frontend.llm",
    "EmbeddingOutput": "ryzjax.serving.messages.request",
    "RequestOutput": "ryzjax.serving.messages.request",
    "SamplingParams": "ryzjax.serving.messages.sampling_params",
    "BaseConfig": "ryzjax.training.config",
    "DataConfig": "ryzjax.data.training.config",
    "LoraConfig": "ryzjax.lora.config",
    "NewModelConfig": "ryzjax.training.start.new_model",
    "OptimizerConfig": "ryzjax.training.optimizers.config",
    "TrainConfig": "ryzjax.training.config",
    "finetune": "ryzjax.training.finetune",
    "pretrain": "ryzjax.training.pretrain",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ryzjax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
