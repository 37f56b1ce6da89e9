"""open_model: opens a model to be evaluated, trained or merged, without an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax

from ryzjax.checkpoint.source import CheckpointSource, LoadFormat, resolve_source
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.weight_plan import ActivationChoice, WeightChoice, WeightPlan, plan_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.sharding import Layout, Placement

__all__ = ["OpenModel", "open_model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenModel:
    """A model whose config and tokenizer have been read. `load` reads its weights.

    Attributes:
      source: The model's files.
      plan: The format of each weight in memory.
      tokenizer: The tokenizer in the model's directory or GGUF file.
    """

    source: CheckpointSource
    plan: WeightPlan
    tokenizer: Tokenizer

    @property
    def model(self) -> AbstractModel:
        """The model's structure and placement, without weights."""
        return self.plan.model

    def with_activations(self, choice: ActivationChoice) -> OpenModel:
        """Returns the same model with other activations. The weights that `load` returns are the same.

        Raises:
          ConfigError: `choice` is "int8", and no layer supports it.
        """
        return replace(self, plan=self.plan.with_activations(choice))

    def load(self, *, show_progress: bool = False) -> tuple[jax.Array, ...]:
        """Reads the weights. Returns the model's leaves, in the order of `model.weights`.

        Raises:
          CheckpointError: A tensor is missing, unexpected, or of another shape or dtype.
          ConfigError: A matrix to be quantized has NaN or infinite weights.
        """
        weights = self.plan.load(show_progress=show_progress)
        return tuple(weights[name] for name in self.model.weights)


def open_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    load_format: LoadFormat = "auto",
    layout: str = "single",
    weights: WeightChoice = "auto",
    weights_group: int = 64,
    activations: ActivationChoice = "bf16",
) -> OpenModel:
    """Opens a model without an engine.

    Args:
      path: A local directory, a GGUF file, or a Hugging Face id.
      revision: Branch, tag or commit of a Hugging Face id.
      dtype: The dtype of plain weights in memory; "auto" takes the stored dtype, with bfloat16 in place of float16.
      load_format: The format of the weight files; "auto" finds out.
      layout: The name of a shipped sharding layout, or a TOML file.
      weights: Whether to keep, dequantize or quantize the weights while loading; see `WeightChoice`.
      weights_group: Group size in in features, where weights are quantized while loading.
      activations: How activations are multiplied with low-bit weights; see `ActivationChoice`.

    Raises:
      ConfigError: An option is invalid, or `load_format` is "dummy": random weights cannot be evaluated.
      UnsupportedModelError: The architecture or the quantization is not supported.
      LayoutError: The layout does not fit the model or the devices.
      CheckpointError: A file is missing or damaged.
    """
    if load_format == "dummy":
        raise ConfigError(
            "load_format='dummy' gives random weights, and this command needs trained ones; name a checkpoint"
        )
    source = resolve_source(path, revision=revision, load_format=load_format)
    config = read_model_config(source, dtype=dtype)
    plan = plan_weights(source, config, Placement(Layout.load(layout)), weights=weights, group=weights_group)
    plan = plan.with_activations(activations)
    return OpenModel(source=source, plan=plan, tokenizer=Tokenizer.load(source.path))
