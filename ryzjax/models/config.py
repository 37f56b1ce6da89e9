"""ModelConfig: the config fields that all model families share.

The fields have RyzJAX's names. The names that vendors use are known to `ryzjax.checkpoint` only. A family adds its own
fields in its own file, as in `class Gemma2Config(ModelConfig)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and the maths of a decoder. Each field changes the output or a shape.

    Attributes:
      dtype: The dtype of weights, activations and KV cache.
      vocab_size: The number of token ids, V.
      hidden_size: The size of a hidden state, E.
      intermediate_size: The inner dimension of the MLP, F. Families with experts say whether it is that of one expert.
      num_layers: The number of layers, L.
      num_heads, num_kv_heads: The number of query heads, and of the KV heads that they share (GQA).
      head_dim: The size of a head, D.
      rms_norm_eps: The epsilon of all RMSNorms.
      max_position: The longest context that the checkpoint was made for, in tokens.
      tie_embeddings: Whether the embedding table is also the head.
      bos_token_id: The token id that starts a sequence; None for none.
      eos_token_ids: The token ids that end a sequence. generation_config.json takes precedence over config.json.
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
