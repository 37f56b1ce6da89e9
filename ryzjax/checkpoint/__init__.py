"""Checkpoints in: where the files are, what model they describe, and the weights themselves."""

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import CheckpointSource, resolve_source

__all__ = [
    "CheckpointSource",
    "model_config_from_hf",
    "resolve_source",
]
