"""Adapter: the matrices of a LoRA, by the layers they adapt; and what they must be for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.lora.base_name import base_name
from ryzjax.lora.config import LoraConfig

__all__ = ["Adapter", "BaseRounding", "LoraWeights", "OnLoadWeights", "check_adapter"]

OnLoadWeights = Literal["int8", "int4", "nf4"]
"""What a plain base can be rounded to as it is loaded."""


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b", "magnitude"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The update of one layer, or of a stack of layers [L, ...]: scale * B A; on a device, or on the host as read.

    Attributes:
      a: [..., r, K].
      b: [..., N, r].
      magnitude: [..., N], of DoRA alone: the norm of each row of W + scale * B A.
    """

    a: jax.Array | np.ndarray
    b: jax.Array | np.ndarray
    magnitude: jax.Array | np.ndarray | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[-2]


@dataclass(frozen=True, kw_only=True)
class BaseRounding:
    """How a plain base was rounded as it was loaded, for an adapter to be trained beside it (`--weights`).

    Attributes:
      weights: to what.
      group: in features that share a scale.
    """

    weights: OnLoadWeights
    group: int

    def __str__(self) -> str:
        return f"{self.weights} in groups of {self.group}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter that is complete: no other file is needed to apply it.

    Attributes:
      config: ranks and scales.
      weights: layer name ("layers.0.attention.q") -> its matrices.
      base_model: what it was trained on, as it calls itself; None where it does not say.
      base_rounding: how that base was rounded as it was loaded; None where it was not, or the adapter does not say.
    """

    config: LoraConfig
    weights: Mapping[str, LoraWeights]
    base_model: str | None = None
    base_rounding: BaseRounding | None = None

    @property
    def max_rank(self) -> int:
        """The largest r of a layer."""
        return max(weights.rank for weights in self.weights.values())


def check_adapter(adapter: Adapter, linears: Mapping[str, tuple[int, ...]], *, name: str) -> None:
    """Whether an adapter fits a model.

    Args:
      linears: layer name -> [N, K], as of `AbstractModel.linears`.
      name: of the adapter, for messages.

    Raises:
      ConfigError: a layer that the model does not have, or matrices of other sizes.
    """
    base = base_name(adapter.base_model)
    for layer, weights in adapter.weights.items():
        shape = linears.get(layer)
        if shape is None or len(shape) != 2:
            raise ConfigError(
                f"adapter {name!r} adapts {layer!r}, which is no plain linear layer of this model; it was made for "
                f"another one ({base or 'it does not say which'})"
            )
        n, k = shape
        rank = adapter.config.rank_of(layer)
        expected: dict[str, tuple[int, ...]] = {"lora_A": (rank, k), "lora_B": (n, rank)}
        found: dict[str, tuple[int, ...]] = {"lora_A": weights.a.shape, "lora_B": weights.b.shape}
        if adapter.config.use_dora:
            expected["magnitude"] = (n,)
            found["magnitude"] = () if weights.magnitude is None else weights.magnitude.shape
        for part, want in expected.items():
            if tuple(found[part]) != want:
                raise ConfigError(
                    f"adapter {name!r}: {part} of {layer} is {list(found[part])}; expected {list(want)} for rank "
                    f"{rank} on a layer of {n} x {k}; it was made for {base or 'another model'}, or its "
                    "config names another rank"
                )
