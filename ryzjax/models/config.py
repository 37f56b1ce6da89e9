"""ModelConfig: the shape and the maths of a model, in our words. Vendors' spellings live in `checkpoint/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelConfig", "RopeConfig"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al., arXiv 2104.09864).

    Attributes:
      theta: base of the geometric series of wavelengths.
      scaling: "none", "linear" (divide positions by factor) or "llama3"
        (Llama 3.1: long wavelengths divided by factor, smooth between the two bounds).
      factor, low_freq_factor, high_freq_factor, original_max_position: the scaling's own parameters.
    """

    theta: float
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and maths of a decoder. Every field changes the output or a shape.

    Attributes:
      family: key of `models.registry`, such as "llama".
      dtype: "float32" or "bfloat16": of weights, activations and KV cache.
      num_heads, num_kv_heads: query heads, and the key/value heads they share (GQA).
      max_position: longest context the checkpoint was made for, in tokens.
      tie_embeddings: the head is the embedding table.
      eos_token_ids: tokens that end a sequence (generation_config wins over config).
    """

    family: str
    dtype: Literal["float32", "bfloat16"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position: int
    tie_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
