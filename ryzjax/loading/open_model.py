"""open_model: a model's files, config and tokenizer, to be run without an engine: evaluated, trained, merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import CheckpointSource, LoadFormat, resolve_source
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.on_load import WeightPlan, Weights, plan_weights
from ryzjax.models.registry import AbstractModel
from ryzjax.sharding import Layout, Placement

__all__ = ["OpenModel", "open_model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenModel:
    """A model whose config and tokenizer are read, and whose weights are not.

    Attributes:
      source: its files.
      plan: what its weights are to be.
      tokenizer: of its directory.
    """

    source: CheckpointSource
    plan: WeightPlan
    tokenizer: Tokenizer

    @property
    def model(self) -> AbstractModel:
        """Its structure and placement."""
        return self.plan.model

    def load(self, *, show_progress: bool = False) -> tuple[jax.Array, ...]:
        """Reads the weights: the leaves, in the order of `model.weights`.

        Raises:
          CheckpointError: a weight is missing or of another shape.
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
    weights: Weights = "auto",
    weights_group: int = 64,
) -> OpenModel:
    """Opens a model to be run without an engine; the arguments are those of `EngineConfig`.

    Raises:
      ConfigError, UnsupportedModelError, LayoutError, CheckpointError: as when it is served; random weights
        (`load_format="dummy"`) are refused.
    """
    if load_format == "dummy":
        raise ConfigError("load_format='dummy' gives random weights, which mean nothing here; name a checkpoint")
    source = resolve_source(path, revision=revision, load_format=load_format)
    config = model_config_from_hf(source.config, source.generation, dtype=dtype, source=source.config_name)
    plan = plan_weights(source, config, Placement(Layout.load(layout)), weights=weights, group=weights_group)
    return OpenModel(source=source, plan=plan, tokenizer=Tokenizer.load(source.path))
