"""Checkpoints in: where the files are, what model they describe, and the weights themselves."""

from ryzjax.checkpoint.dummy import dummy_weights
from ryzjax.checkpoint.hf_config import model_config_from_hf
from ryzjax.checkpoint.load import load_weights, stored_model
from ryzjax.checkpoint.source import CheckpointSource, resolve_source

__all__ = [
    "CheckpointSource",
    "dummy_weights",
    "load_weights",
    "model_config_from_hf",
    "resolve_source",
    "stored_model",
]
