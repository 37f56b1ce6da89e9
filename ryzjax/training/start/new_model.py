"""NewModelConfig: the model that pretrain trains, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ryzjax.errors import ConfigError

__all__ = ["NewModelConfig"]


@dataclass(frozen=True, kw_only=True)
class NewModelConfig:
    """A model to pretrain: a Llama of given sizes, the model of a config.json, or an existing model to train further.

    Raises:
      ConfigError: The sizes make no valid model, or two settings contradict each other.
    """

    begin_from: str | None = None
    """Model (a directory or a Hugging Face id) whose weights the run starts from, instead of random ones. Its
    tokenizer, shape and dtype replace the settings below."""
    model_config: str | None = None
    """config.json of any family that RyzJAX runs, instead of the sizes below. The vocabulary size is the
    tokenizer's."""
    hidden_size: int = 256
    """Width of the residual stream."""
    intermediate_size: int = 704
    """Inner width of the MLPs."""
    num_layers: int = 6
    """Number of layers."""
    num_heads: int = 8
    """Query heads. Each has hidden_size / num_heads features."""
    num_kv_heads: int = 4
    """Key/value heads."""
    max_position: int = 4096
    """Longest sequence that the model supports, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding."""
    tie_embeddings: bool = True
    """Share one table between the embedding and the head."""
    tokenizer: str | None = None
    """Folder of a tokenizer. Required unless the rows are synthetic."""
    synthetic_rows: int | None = None
    """Number of synthetic rows (`ryzjax.data.synthetic`) to train on, instead of data."""
    synthetic_eval_rows: int = 400
    """Number of synthetic rows to evaluate on. Their problems are in no training row."""
    synthetic_mixture: dict[str, float] = field(default_factory=dict)
    """Task -> share of the tokens of the synthetic rows. Defaults to `ryzjax.data.synthetic.MIXTURE`."""
    synthetic_begins_at: float = 0.0
    """Where the curriculum of synthetic rows starts, from 0 (short lists first) to 1 (lists of every length at once,
    for a model that can already look things up)."""
    vocab_size: int = 3072
    """Vocabulary size of the tokenizer that is learned from synthetic rows, if no tokenizer is given."""
    model_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype to write the model in. The trained weights are float32."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype to compute in. auto takes model_dtype, or float32 on a CPU that trains faster in float32."""
    layout: str = "single"
    """Sharding layout: the name of a shipped layout (fsdp_tp, tp, tp_dp, ...) or a TOML file."""

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
                "features per head; change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
