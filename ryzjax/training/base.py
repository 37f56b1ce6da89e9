"""BaseConfig: the model that is trained, or that an adapter is trained beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ryzjax.checkpoint.source import LoadFormat
from ryzjax.quant.on_load import Weights
from ryzjax.quant.open_model import OpenModel, open_model

__all__ = ["BaseConfig"]


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The model that is trained, or that an adapter is trained beside."""

    model: str
    """Local directory, or Hugging Face id."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    load_format: LoadFormat = "auto"
    """How the weights are stored."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """That the model is computed in; auto takes the checkpoint's (float16 becomes bfloat16)."""
    layout: str = "single"
    """Sharding: a shipped layout's name (fsdp_tp, tp, tp_dp, ...) or a TOML file."""
    weights: Weights = "auto"
    """Of the frozen base: auto as stored, bf16 plain, or rounded as they are loaded (int8, int4): QLoRA."""
    weights_group: int = 64
    """In features that share a scale of int8 and int4."""

    def open(self) -> OpenModel:
        """Its files; errors as of `open_model`."""
        return open_model(
            self.model,
            revision=self.model_revision,
            dtype=self.dtype,
            load_format=self.load_format,
            layout=self.layout,
            weights=self.weights,
            weights_group=self.weights_group,
        )
