"""Adapter: the matrices of a LoRA adapter by layer, and the check that they fit a model."""

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

__all__ = ["Adapter", "BaseQuantization", "LoraWeights", "OnLoadWeights", "check_adapter"]

OnLoadWeights = Literal["int8", "int4", "nf4"]
"""The formats that a plain base model can be quantized to while loading."""


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b", "magnitude"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The matrices of the update scale * B A of one layer, or of a stack of layers [L, ...].

    The arrays are on a device, or on the host as they were read. r is the rank.

    Attributes:
      a: A, [..., r, K].
      b: B, [..., N, r].
      magnitude: The magnitude of each row of the adapted weight, [..., N]. DoRA only; None otherwise.
    """

    a: jax.Array | np.ndarray
    b: jax.Array | np.ndarray
    magnitude: jax.Array | np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The rank r of the update."""
        return self.a.shape[-2]


@dataclass(frozen=True, kw_only=True)
class BaseQuantization:
    """How a plain base model was quantized while loading, when an adapter was trained on it (`--weights`).

    Attributes:
      weights: The format.
      group: The group size, in in features.
    """

    weights: OnLoadWeights
    group: int

    def __str__(self) -> str:
        return f"{self.weights} in groups of {self.group}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A complete adapter. No other file is needed to apply it.

    Attributes:
      config: The ranks and scales.
      weights: Layer name ("layers.0.attention.q") -> its matrices.
      base_model: The name of the model that it was trained on; None if unknown.
      base_quantization: How that model was quantized while loading; None if it was not, or if unknown.
    """

    config: LoraConfig
    weights: Mapping[str, LoraWeights]
    base_model: str | None = None
    base_quantization: BaseQuantization | None = None

    @property
    def max_rank(self) -> int:
        """The largest rank of a layer."""
        return max(weights.rank for weights in self.weights.values())


def check_adapter(adapter: Adapter, linears: Mapping[str, tuple[int, ...]], *, name: str) -> None:
    """Checks that an adapter fits a model.

    Args:
      adapter: The adapter.
      linears: Layer name -> shape of its weight, [N, K], as in `AbstractModel.linears`.
      name: The name of the adapter in error messages.

    Raises:
      ConfigError: The model lacks an adapted layer, or matrices have other sizes.
    """
    base = base_name(adapter.base_model)
    for layer, weights in adapter.weights.items():
        shape = linears.get(layer)
        if shape is None or len(shape) != 2:
            raise ConfigError(
                f"adapter {name!r} adapts {layer!r}, which is not a plain linear layer of this model; it was made for "
                f"another model ({base or 'of unknown name'})"
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
