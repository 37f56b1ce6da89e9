"""Weights of fewer bits than the checkpoint's, rounded as they are loaded: `--weights int8 | int4 | nf4`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.checkpoint.opened import OpenCheckpoint
from ryzjax.checkpoint.quantized.encoded import Encoded
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.errors import ConfigError
from ryzjax.loading.buffers import placed
from ryzjax.loading.load import check_checkpoint, load_weights, read_weights, stored_model
from ryzjax.loading.progress import byte_progress
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import AbstractModel, abstract_model
from ryzjax.qarray import LEAVES, QArray, QFormat
from ryzjax.quant.matrix import check_weights
from ryzjax.quant.nf4 import nearest_nf4, nf4_array, nf4_format
from ryzjax.quant.rounding import nearest, search_grid
from ryzjax.quant.scheme import Scheme
from ryzjax.sharding import Placement

__all__ = ["WeightPlan", "Weights", "plan_weights"]

Weights = Literal["auto", "bf16", "int8", "int4", "nf4"]
"""auto: as they are stored; bf16: plain, also of a quantized checkpoint; int8, int4, nf4: rounded to nearest."""

_PANEL_WEIGHTS = 2**20
"""Weights rounded at a time: the search passes over them again and again, and they should stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class WeightPlan:
    """What a model's weights are to be, and where they come from.

    Attributes:
      source: the checkpoint.
      stored: the model as its weights are read.
      model: the model as it runs.
    """

    source: CheckpointSource
    stored: AbstractModel
    model: AbstractModel

    def with_layers_on_host(self) -> WeightPlan:
        """The same, its layers loaded to pinned memory of the host: what is rounded passes the device alone.

        Raises:
          ConfigError: as of `AbstractModel.with_layers_on_host`.
        """
        model = self.model.with_layers_on_host()
        return replace(self, stored=model if self.model is self.stored else self.stored, model=model)

    def load(self, *, show_progress: bool = False) -> dict[str, jax.Array]:
        """Name -> array, in the order of `model.weights`; a matrix that is rounded is in memory alone while it is.

        Raises:
          CheckpointError: as of `load_weights`.
          ConfigError: weights that are NaN or infinite, which no few bits can hold.
        """
        if self.model is self.stored:
            return load_weights(self.source, self.model, show_progress=show_progress)
        weights: dict[str, jax.Array] = {}
        total = sum(spec.nbytes for spec in self.stored.weights.values())
        with byte_progress("Rounding weights", total, show=show_progress) as advance:
            for name, array in self._read():
                format = self.model.quantization.get(name.removesuffix(".weight"))
                if format is None:
                    weights[name] = jax.device_put(array, self.model.weights[name].sharding)
                else:
                    for leaf, part in _leaves(round_matrix(name, array, format)).items():
                        sharding = self.model.weights[f"{name}.{leaf}"].sharding
                        weights[f"{name}.{leaf}"] = placed(np.asarray(part), sharding)
                advance(self.stored.weights[name].nbytes)
        return {name: weights[name] for name in self.model.weights}

    def _read(self) -> Iterator[tuple[str, jax.Array]]:
        if self.source.weight_format == "orbax":
            yield from load_weights(self.source, self.stored).items()
            return
        with ExitStack() as stack:
            checkpoint = stack.enter_context(OpenCheckpoint(self.source, self.stored.config))
            check_checkpoint(checkpoint, self.stored)
            for name in self.stored.weights:
                yield name, read_weights(checkpoint, self.stored, (name,))[name]


def plan_weights(
    source: CheckpointSource, config: ModelConfig, placement: Placement, *, weights: Weights = "auto", group: int = 64
) -> WeightPlan:
    """Decides what each weight of a checkpoint becomes.

    Args:
      weights: int8, int4 and nf4 take every linear layer but routers and experts, and the embedding table, which is
        int8 with all of them: its rows are the model's inputs, and its head where that is tied.
      group: in features that share a scale; a layer they do not divide gets int8 and a scale a row.

    Raises:
      ConfigError: int8, int4 or nf4 of a checkpoint that is quantized already.
      CheckpointError, UnsupportedModelError, LayoutError: as of `stored_model`; a layout may split a group.
    """
    stored = stored_model(source, config, placement)
    if weights == "bf16":
        stored = abstract_model(config, placement) if stored.quantization else stored
    if weights in ("auto", "bf16"):
        return WeightPlan(source=source, stored=stored, model=stored)
    if stored.quantization:
        raise ConfigError(
            f"weights={weights!r} rounds a plain checkpoint, and {source.name} is quantized already; leave the option "
            "out to serve it as it is, or take the model it was made from"
        )
    formats: dict[str, QFormat] = {"embed": _format("int8", group, config.hidden_size)}
    for name, shape in stored.linears.items():
        if len(shape) == 2 and not name.endswith(".router"):
            formats[name] = _format(weights, group, shape[1])
    return WeightPlan(source=source, stored=stored, model=abstract_model(config, placement, formats))


def round_matrix(name: str, w: jax.Array, format: QFormat) -> QArray:
    """[N, K] rounded to nearest; of int4 each group's scale is the one with the least squared error.

    Raises:
      ConfigError: weights that are NaN or infinite.
    """
    check_weights(name, w)
    group = format.group or w.shape[1]
    if format.kind == "float4":
        return nf4_array(*_by_panels(partial(nearest_nf4, block=group), w))
    q, scales = _by_panels(partial(_round, bits=4 if format.pack else 8, group=group), w)
    return Encoded(format=format, q=(q + 8).astype(np.uint8) if format.pack else q, scales=scales).qarray()


def _by_panels(fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]], w: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """What `fn` makes of [N, K], some rows at a time: two arrays [N, ...] on the host."""
    rows = w.shape[0]
    panel = min(rows, max(1, _PANEL_WEIGHTS // w.shape[1]))
    padded = jnp.pad(w, ((0, -rows % panel), (0, 0)))  # one shape, one program
    parts = [fn(padded[first : first + panel]) for first in range(0, rows, panel)]
    first, second = (np.concatenate([np.asarray(part) for part in each])[:rows] for each in zip(*parts, strict=True))
    return first, second


def _format(weights: Literal["int8", "int4", "nf4"], group: int, k: int) -> QFormat:
    # bfloat16 scales hold any weight's; q is rounded with them as they are stored, so nothing is lost twice.
    scheme = Scheme(bits=8 if weights == "int8" else 4, group=group).fitted(k)
    return nf4_format(group) if weights == "nf4" and scheme.bits == 4 else scheme.format(k, "bfloat16")


def _leaves(array: QArray) -> dict[str, jax.Array]:
    return {leaf: part for leaf in LEAVES if (part := getattr(array, leaf)) is not None}


@partial(jax.jit, static_argnames=("bits", "group"))
def _round(w: jax.Array, bits: int, group: int) -> tuple[jax.Array, jax.Array]:
    rows, k = w.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = w.astype(jnp.float32).reshape(rows, -1, group)
    grid = search_grid(
        groups,
        jnp.ones((k // group, group)),
        low=low,
        high=high,
        symmetric=True,
        scale_dtype="bfloat16",
        search=bits == 4,  # 8 bits gain nothing by clipping
    )
    q = nearest(groups, grid, low, high).reshape(rows, k).astype(jnp.int8)
    return q, grid.scale.astype(jnp.bfloat16)
