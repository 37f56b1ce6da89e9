"""mix_of_bits: chooses which layers get 8 bits, by how much quantizing them changes the model's output.

The inputs of every block are kept for a few sequences. For each input group, its layers alone are quantized to 4 bits,
and the sequences run on from its block. The KL divergence of the logits from the plain model's is the group's
sensitivity. A mix gives 8 bits to the groups that lower the sum of divergences most for their bytes.
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
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.weight_names import layer_name
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
"""Tokens over which a divergence is measured. Few are enough: layers differ by factors, not by percents."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The sensitivity of a group of layers.

    Attributes:
      layers: Names of the layers.
      kl: KL divergence of the model's output with these layers in 4 bits and all others plain, in nats a token.
      weights: Number of weights of the layers.
      bytes_4, bytes_8: Bytes of the layers at either width, scales included.
    """

    layers: tuple[str, ...]
    kl: float
    weights: int
    bytes_4: int
    bytes_8: int


class FixedLayers(NamedTuple):
    """Quantized layers with a fixed width, because the recipe says 8 bits or the groups do not divide them.

    Attributes:
      weights: Number of their weights.
      nbytes: Their bytes, scales included.
    """

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
    """Chooses the bits of each linear layer for a recipe with a target.

    Args:
      source: The plain checkpoint.
      model: Its abstract model. All weights are loaded.
      recipe: A recipe with `target_bits` or `max_kl`.
      calibration: Calibration text.
      show_progress: Whether to show a progress bar on stderr.

    Returns:
      Layer name -> 4 or 8.

    Raises:
      ConfigError: The target cannot be met.
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
        # Experts, routers and layers that the recipe leaves in 16 bits are not quantized.
        if name in chosen or bits == 16 or len(shape) != 2 or name.endswith(".router"):
            continue
        weights += shape[0] * shape[1]
        nbytes += recipe.scheme(bits).fitted(shape[1]).nbytes((shape[0], shape[1]))
    return FixedLayers(weights, nbytes)


def choose_bits(
    found: list[Sensitivity], rest: FixedLayers, *, target_bits: float | None, max_kl: float | None
) -> dict[str, int]:
    """Gives 8 bits to groups in the order of the divergence that a byte saves, until the target is met.

    Args:
      found: The sensitivity of every group.
      rest: Quantized layers with a fixed width. They count in the average.
      target_bits: The highest average of bits per weight, scales included; None for `max_kl`.
      max_kl: The sum of divergences to stay below, in nats a token.

    Returns:
      Layer name -> 4 or 8.

    Raises:
      ConfigError: 4 bits for all groups already exceed `target_bits`.
    """
    bits = {layer: 4 for group in found for layer in group.layers}
    weights = rest.weights + sum(group.weights for group in found)
    spent = rest.nbytes + sum(group.bytes_4 for group in found)
    left = sum(group.kl for group in found)
    if target_bits is not None and 8 * spent > target_bits * weights:
        raise ConfigError(
            f"target_bits={target_bits}: 4 bits with their scales take {8 * spent / weights:.3f} bits a weight already"
            + (f", including {rest.weights:,} weights at 8 bits that cannot have 4" if rest.weights else "")
            + "; raise target_bits, or use larger groups"
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
    """Measures the sensitivity of every group, by quantizing it alone.

    Args:
      model: The abstract model.
      weights: Weight name -> array, of the whole model.
      recipe: The recipe, which says which layers can have 4 bits.
      calibration: Calibration text, of which 2048 tokens are used.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: No layer can have 4 bits.
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
        # A group of an early block runs through all later blocks, so progress counts blocks, not groups.
        task = bar.add_task("sensitivity", total=sum(layers - layer for layer, _ in work))
        for layer, group in work:
            names = [layer_name(layer, member) for member in group.members]
            names = [name for name in names if recipe.bits_of(name) == 4]
            schemes = {name: recipe.scheme(4) for name in names if recipe.scheme(4).fits(model.linears[name][-1])}
            if schemes:
                kl = _divergence(runner, layer, weights, schemes, inputs[layer], compare)
                found.append(_sensitivity(model, recipe, tuple(schemes), kl))
            bar.update(task, advance=layers - layer)
    if not found:
        raise ConfigError(f"no layer can be quantized to 4 bits in groups of {recipe.group_size}; use smaller groups")
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
    """Computes the mean KL divergence of logits from the plain model's, given final hidden states.

    Args:
      model: The abstract model.
      weights: Weight name -> array, at least for the weights outside the blocks.
      reference: Final hidden states of the plain model, [sequences, tokens, E].
    """

    def __init__(self, model: AbstractModel, weights: Mapping[str, jax.Array], reference: np.ndarray):
        self._reference = reference
        table = {name: weights[name] for name in model.outer_names}

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
