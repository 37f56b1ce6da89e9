"""ModelConfig: the shape and the maths that all families share, in our words. Vendors' spellings live in `checkpoint/`.

A family adds its own fields in its own file: `class Gemma2Config(ModelConfig)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and maths of a decoder. Every field changes the output or a shape.

    Attributes:
      dtype: "float32" or "bfloat16": of weights, activations and KV cache.
      intermediate_size: inner dimension of the MLP, of one expert in a mixture.
      num_heads, num_kv_heads: query heads, and the key/value heads they share (GQA).
      max_position: longest context the checkpoint was made for, in tokens.
      tie_embeddings: the head is the embedding table.
      eos_token_ids: tokens that end a sequence (generation_config wins over config).
    """

    dtype: Literal["float32", "bfloat16"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
