"""NewModelConfig: a model that is trained from random weights, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ryzjax.errors import ConfigError

__all__ = ["NewModelConfig"]


@dataclass(frozen=True, kw_only=True)
class NewModelConfig:
    """A model that does not exist yet: a Llama of some size, what a config.json says, or the next stage of a model.

    Raises:
      ConfigError: sizes that make no model, or two settings that contradict each other.
    """

    begin_from: str | None = None
    """Model (a directory, or a Hugging Face id) whose weights the run begins with, in place of random ones. Its
    tokenizer, shape and dtype count, and none of the sizes below."""
    model_config: str | None = None
    """config.json of any family that RyzJAX runs, in place of the sizes below; the vocabulary is the tokenizer's."""
    hidden_size: int = 256
    """Of the residual stream."""
    intermediate_size: int = 704
    """Of the MLPs."""
    num_layers: int = 6
    """Blocks."""
    num_heads: int = 8
    """Query heads; each has hidden_size / num_heads features."""
    num_kv_heads: int = 4
    """Key/value heads."""
    max_position: int = 4096
    """Longest sequence the model is for."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding."""
    tie_embeddings: bool = True
    """One table for embedding and head."""
    tokenizer: str | None = None
    """Folder of a tokenizer; needed unless the rows are synthetic."""
    synthetic_rows: int | None = None
    """Train on so many rows of our own making (`ryzjax.data.synthetic`) in place of data."""
    synthetic_eval_rows: int = 400
    """Rows of the same kind, of problems that are in no training row, to evaluate on."""
    synthetic_mixture: dict[str, float] = field(default_factory=dict)
    """Task -> share of the tokens of synthetic rows; by default `ryzjax.data.synthetic.MIXTURE`."""
    synthetic_begins_at: float = 0.0
    """Where the course of synthetic rows begins, from 0 (short lists first) to 1 (lists of every length at once, for a
    model that can look things up already)."""
    vocab_size: int = 3072
    """Of the tokenizer that is learnt from synthetic rows, where none is given."""
    model_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """That the model is written in; what is trained is float32."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """That the model is computed in while it is trained: auto takes model_dtype, or float32 on a CPU where that is
    faster."""
    layout: str = "single"
    """Sharding: a shipped layout's name (fsdp_tp, tp, tp_dp, ...) or a TOML file."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "max_position"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected 1 or more")
        for name in ("model_config", "tokenizer"):
            if self.begin_from is not None and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} contradicts begin_from={self.begin_from!r}, a model that has its "
                    "own; leave one of them out"
                )
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is no multiple of num_heads={self.num_heads} with an even number of "
                "features a head; change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
