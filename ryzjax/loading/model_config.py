"""Reads the ModelConfig of a checkpoint that `resolve_source` found."""

from __future__ import annotations

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.models.config import ModelConfig

__all__ = ["read_model_config"]


def read_model_config(source: CheckpointSource, *, dtype: str = "auto") -> ModelConfig:
    """Reads a model's shape, maths and special token ids from its config files, or from its GGUF metadata.

    Args:
      source: The checkpoint's files.
      dtype: The dtype of plain weights in memory: "auto", "float32" or "bfloat16". "auto" takes the stored dtype, with
        bfloat16 in place of float16, and float32 where the config names none.

    Raises:
      UnsupportedModelError: The architecture, or a field that may change the maths, is not supported.
      ConfigError: `dtype` is none of the three.
    """
    return model_config_from_hf(source.config, source.generation, dtype=dtype, source=source.config_name)
