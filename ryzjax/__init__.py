"""RyzJAX: one Flax model definition, sharded, batched and served.

    from ryzjax import LLM, SamplingParams

Importing this package loads no jax: `LLM` does, on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ryzjax.serving.llm import LLM
    from ryzjax.serving.request import EmbeddingOutput, RequestOutput
    from ryzjax.serving.sampling_params import SamplingParams

__all__ = ["LLM", "EmbeddingOutput", "RequestOutput", "SamplingParams", "__version__"]

try:
    __version__ = version("ryzjax")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"

_HOME = {
    "LLM": "ryzjax.serving.llm",
    "EmbeddingOutput": "ryzjax.serving.request",
    "RequestOutput": "ryzjax.serving.request",
    "SamplingParams": "ryzjax.serving.sampling_params",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ryzjax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
