"""Which layers need more bits: what rounding one group of layers alone does to the model's output distribution.

Every block's input is kept for a few sequences. A group is rounded to 4 bits, the sequences go on from its block, and
the KL divergence of the logits from the model's own is its sensitivity. A mix gives 8 bits to the groups that lower
the sum of divergences most for their bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.errors import ConfigError
from ryzjax.loading.load import check_checkpoint, read_weights
from ryzjax.models.registry import AbstractModel
from ryzjax.quant.encode_matrix import round_to_nearest
from ryzjax.quant.recipe import Recipe
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.block_runner import BlockRunner
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.hidden_states import HiddenStates, embed_sequences
from ryzjax.quantizing.input_groups import input_groups

__all__ = ["FixedLayers", "Sensitivity", "choose_bits", "mix_of_bits", "sensitivities"]

_log = logging.getLogger(__name__)

_SAMPLE_TOKENS = 2048
"""Tokens the divergences are over: layers differ by factors, not by percents."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """A group of layers.

    Attributes:
      layers: their names.
      kl: divergence of the model's output with these layers at 4 bits and all others as they are, nats a token.
      weights: of the layers together.
      bytes_4, bytes_8: at either width, scales included.
    """

    layers: tuple[str, ...]
    kl: float
    weights: int
    bytes_4: int
    bytes_8: int


class FixedLayers(NamedTuple):
    """Quantized layers that have no choice: asked to have 8 bits, or groups do not divide them."""

    weights: int
    nbytes: int


def mix_of_bits(
    source: CheckpointSource,
    model: AbstractModel,
    recipe: Recipe,
    calibration: Calibration,
    *,
    show_progress: bool = True,
) -> dict[str, int]:
    """Linear layer -> 4 or 8 bits, for a recipe with a target.

    Raises:
      ConfigError: the target cannot be met.
    """
    with OpenCheckpoint(source, model.config) as checkpoint:
        check_checkpoint(checkpoint, model)
        weights = read_weights(checkpoint, model, tuple(model.weights))
    found = sensitivities(model, weights, recipe, calibration, show_progress=show_progress)
    rest = _rest(model, recipe, {layer for group in found for layer in group.layers})
    return choose_bits(found, rest, target_bits=recipe.target_bits, max_kl=recipe.max_kl)


def _rest(model: AbstractModel, recipe: Recipe, chosen: set[str]) -> FixedLayers:
    weights = nbytes = 0
    for name, shape in model.linears.items():
        bits = recipe.bits_of(name)
        # What stays in 16 bits is not quantized: experts, routers, and what the recipe leaves alone.
        if name in chosen or bits == 16 or len(shape) != 2 or name.endswith(".router"):
            continue
        weights += shape[0] * shape[1]
        nbytes += recipe.scheme(bits).fitted(shape[1]).nbytes((shape[0], shape[1]))
    return FixedLayers(weights, nbytes)


def choose_bits(
    found: list[Sensitivity], rest: FixedLayers, *, target_bits: float | None, max_kl: float | None
) -> dict[str, int]:
    """Linear layer -> 4 or 8 bits: groups go to 8 in the order of divergence saved for a byte.

    Args:
      found: every group.
      rest: what is quantized besides; it counts in the average.
      target_bits: average bits a weight, scales included, that may be spent.
      max_kl: or the sum of divergences to get under.

    Raises:
      ConfigError: 4 bits for all are above `target_bits` already.
    """
    bits = {layer: 4 for group in found for layer in group.layers}
    weights = rest.weights + sum(group.weights for group in found)
    spent = rest.nbytes + sum(group.bytes_4 for group in found)
    left = sum(group.kl for group in found)
    if target_bits is not None and 8 * spent > target_bits * weights:
        raise ConfigError(
            f"target_bits={target_bits}: 4 bits with their scales take {8 * spent / weights:.3f} a weight already"
            + (f", {rest.weights:,} weights at 8 bits that have no choice included" if rest.weights else "")
            + "; ask for more, or take larger groups"
        )
    for group in sorted(found, key=lambda g: g.kl / max(1, g.bytes_8 - g.bytes_4), reverse=True):
        more = group.bytes_8 - group.bytes_4
        if max_kl is not None:
            if left <= max_kl:
                break
        elif target_bits is not None and 8 * (spent + more) > target_bits * weights:
            continue  # a smaller group may still fit
        bits |= dict.fromkeys(group.layers, 8)
        spent += more
        left -= group.kl
    high = sum(width == 8 for width in bits.values())
    _log.info("%d of %d layers get 8 bits: %.3f bits a weight", high, len(bits), 8 * spent / weights)
    return bits


def sensitivities(
    model: AbstractModel,
    weights: Mapping[str, jax.Array],
    recipe: Recipe,
    calibration: Calibration,
    *,
    show_progress: bool = True,
) -> list[Sensitivity]:
    """Every group's, each rounded alone.

    Args:
      weights: of the whole model.
    """
    sequence_tokens = calibration.tokens.shape[1]
    tokens = calibration.tokens[: max(1, _SAMPLE_TOKENS // sequence_tokens)]
    runner = BlockRunner(model, sequence_tokens=sequence_tokens)
    layers = model.config.num_layers
    inputs = [embed_sequences(model, weights, tokens).hidden]
    for layer in range(layers):
        stream = HiddenStates(hidden=inputs[-1].copy())
        stream.advance(runner, layer, weights)
        inputs.append(stream.hidden)
    compare = _Comparison(model, weights, inputs[-1])
    work = [(layer, group) for layer in range(layers) for group in input_groups(model, layer)]
    found: list[Sensitivity] = []
    columns = TextColumn("Sensitivity of layers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as bar:
        # A group of an early block runs through all later ones: time goes by blocks, not by groups.
        task = bar.add_task("sensitivity", total=sum(layers - layer for layer, _ in work))
        for layer, group in work:
            names = [f"layers.{layer}.{member}" for member in group.members]
            names = [name for name in names if recipe.bits_of(name) == 4]
            schemes = {name: recipe.scheme(4) for name in names if recipe.scheme(4).fits(model.linears[name][-1])}
            if schemes:
                kl = _divergence(runner, layer, weights, schemes, inputs[layer], compare)
                found.append(_sensitivity(model, recipe, tuple(schemes), kl))
            bar.update(task, advance=layers - layer)
    if not found:
        raise ConfigError(f"no layer can be quantized to 4 bits in groups of {recipe.group_size}; take smaller groups")
    return found


def _divergence(
    runner: BlockRunner,
    layer: int,
    weights: Mapping[str, jax.Array],
    schemes: Mapping[str, Scheme],
    hidden: np.ndarray,
    compare: _Comparison,
) -> float:
    changed = dict(weights)
    for name, scheme in schemes.items():
        w = weights[f"{name}.weight"]
        dtype = "bfloat16" if w.dtype == jnp.bfloat16 else "float32"
        value = round_to_nearest(w.astype(jnp.float32), scheme, jnp.ones(w.shape[1]), dtype)
        changed[f"{name}.weight"] = value.astype(w.dtype)
    stream = HiddenStates(hidden=hidden.copy())
    for at in range(layer, runner.model.config.num_layers):
        stream.advance(runner, at, changed)
    return compare(stream.hidden)


def _sensitivity(model: AbstractModel, recipe: Recipe, names: tuple[str, ...], kl: float) -> Sensitivity:
    shapes = [(model.linears[name][-2], model.linears[name][-1]) for name in names]
    return Sensitivity(
        layers=names,
        kl=kl,
        weights=sum(n * k for n, k in shapes),
        bytes_4=sum(recipe.scheme(4).nbytes(shape) for shape in shapes),
        bytes_8=sum(recipe.scheme(8).nbytes(shape) for shape in shapes),
    )


class _Comparison:
    """Mean KL of a model's logits from its own at full precision, given final hidden states."""

    def __init__(self, model: AbstractModel, weights: Mapping[str, jax.Array], reference: np.ndarray):
        self._reference = reference
        table = {name: weights[name] for name in weights if not name.startswith("layers.")}

        @jax.jit
        def kl(table: dict[str, jax.Array], reference: jax.Array, hidden: jax.Array) -> jax.Array:
            decoder = model.merge_some(table)
            p = jax.nn.log_softmax(decoder.logits(reference), axis=-1)
            q = jax.nn.log_softmax(decoder.logits(hidden), axis=-1)
            return jnp.sum(jnp.exp(p) * (p - q), axis=-1).mean()

        self._kl = kl
        self._table = table

    def __call__(self, hidden: np.ndarray) -> float:
        parts = [self._kl(self._table, a, b) for a, b in zip(self._reference, hidden, strict=True)]
        return float(np.mean([float(part) for part in parts]))
