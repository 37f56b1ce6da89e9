"""BlockQuantizer: quantizes the linear layers of one block, one input group after another.

Each group is fitted to the inputs that it gets behind the groups quantized before it, so that later groups make up for
the errors of earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.checkpoint.stored_weight import WholeTensors
from ryzjax.loading.load import read_weights
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import abstract_model
from ryzjax.models.weight_names import layer_name
from ryzjax.quant.encode_matrix import check_weights
from ryzjax.quant.recipe import Recipe
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.block_runner import BlockRunner
from ryzjax.quantizing.hidden_states import HiddenStates, HiddenStatesPair
from ryzjax.quantizing.input_groups import InputGroup, input_groups, norm_offset
from ryzjax.quantizing.moments import Moments
from ryzjax.quantizing.quantize_group import GroupResult, MemberResult, quantize_group

__all__ = ["BlockQuantizer", "QuantizedBlock"]


@dataclass(kw_only=True)
class QuantizedBlock:
    """A block while its groups are quantized, and afterwards.

    Attributes:
      plain: Our weight name -> the checkpoint's weight, for all weights of the block.
      weights: The same with the values that the quantized model computes with, dequantized.
      encoded: Layer name -> its quantized matrix.
      changed: Names of plain weights that took AWQ's scales: norms and biases.
      results: Layer name -> the scheme that was used, and the result.
    """

    plain: Mapping[str, jax.Array]
    weights: dict[str, jax.Array]
    encoded: dict[str, EncodedMatrix] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    results: dict[str, tuple[Scheme, MemberResult]] = field(default_factory=dict)

    def changed_weights(self) -> dict[str, np.ndarray]:
        """Returns the values of the weights in `changed`, on the host."""
        return {name: np.asarray(self.weights[name]) for name in self.changed}


class BlockQuantizer:
    """Quantizes the blocks of a checkpoint by a recipe.

    Args:
      checkpoint: The plain checkpoint.
      model: Its abstract model.
      recipe: The recipe.
      bits: Layer name -> bits, from a mix that was chosen by sensitivity; None for the recipe's own.
      runner: Runs the blocks over calibration text; None for methods without data.
    """

    def __init__(
        self,
        checkpoint: OpenCheckpoint,
        model: AbstractModel,
        recipe: Recipe,
        *,
        bits: Mapping[str, int] | None,
        runner: BlockRunner | None,
    ):
        self.checkpoint = checkpoint
        self.model = model
        self.recipe = recipe
        self.bits = bits
        self.runner = runner

    def bits_of(self, name: str) -> int:
        """The bits that a layer must get; 16 leaves it plain."""
        bits = self.recipe.bits_of(name)
        return bits if bits == 16 or self.bits is None else self.bits.get(name, bits)

    def quantize(self, layer: int, pairs: Mapping[str, HiddenStatesPair]) -> QuantizedBlock:
        """Reads and quantizes block `layer`.

        Args:
          layer: Index of the block.
          pairs: "calibration" and "held_out" -> hidden states at the entry of the block; empty without data.

        Raises:
          ConfigError: A weight is NaN or infinite.
        """
        plain = read_weights(self.checkpoint, self.model, self.model.layer_names(layer))
        block = QuantizedBlock(plain=plain, weights=dict(plain))
        for group in input_groups(self.model, layer):
            schemes = self._schemes(layer, group)
            if not schemes:
                continue
            moments = self._moments(layer, group, block, pairs)
            result = self._quantize_group(layer, group, schemes, block.weights, moments)
            if result.scales is not None:
                self._fold_scales(layer, group, result.scales, block)
            for member, member_result in result.members.items():
                name = layer_name(layer, member)
                block.encoded[name] = member_result.encoded
                block.results[name] = schemes[member], member_result
                block.weights[f"{name}.weight"] = self._dequantized(member_result.encoded)
        return block

    def advance(self, pair: HiddenStatesPair, layer: int, block: QuantizedBlock) -> None:
        """Runs a pair of hidden states through block `layer`: through the quantized block and the plain one."""
        assert self.runner is not None
        self._advance_quantized(pair.quantized, layer, block)
        pair.plain.advance(self.runner, layer, block.plain)

    def _advance_quantized(self, states: HiddenStates, layer: int, block: QuantizedBlock) -> None:
        """Runs the quantized block with dequantized weights, or as QArrays if activations are quantized too."""
        assert self.runner is not None
        if not any(matrix.format.activations for matrix in block.encoded.values()):
            states.advance(self.runner, layer, block.weights)
            return
        formats = {name: matrix.format for name, matrix in block.encoded.items()}
        model = abstract_model(self.model.config, self.model.placement, formats)
        runner = BlockRunner(model, sequence_tokens=self.runner.sequence_tokens)
        weights = {n: value for n, value in block.weights.items() if n.removesuffix(".weight") not in block.encoded}
        for name, matrix in block.encoded.items():
            array = matrix.qarray()
            for leaf in matrix.format.leaf_shapes(array.shape):
                weights[f"{name}.weight.{leaf}"] = getattr(array, leaf)
        states.advance(runner, layer, weights)

    def _dequantized(self, encoded: EncodedMatrix) -> jax.Array:
        return jnp.asarray(encoded.dequantized(), self.model.config.dtype)

    def _schemes(self, layer: int, group: InputGroup) -> dict[str, Scheme]:
        """Returns member -> scheme, for the members that must be quantized."""
        schemes = {}
        for member in group.members:
            name = layer_name(layer, member)
            bits = self.bits_of(name)
            if bits != 16:
                schemes[member] = self.recipe.scheme(bits).fitted(self.model.linears[name][-1])
        return schemes

    def _moments(
        self, layer: int, group: InputGroup, block: QuantizedBlock, pairs: Mapping[str, HiddenStatesPair]
    ) -> Moments | None:
        if self.runner is None:
            return None
        calibration, held_out = (
            pairs[kind].observe(
                self.runner, layer, group.observed, block.weights, block.plain, with_drift=kind == "held_out"
            )
            for kind in ("calibration", "held_out")
        )
        return Moments(calibration=calibration, held_out=held_out)

    def _quantize_group(
        self,
        layer: int,
        group: InputGroup,
        schemes: Mapping[str, Scheme],
        weights: Mapping[str, jax.Array],
        moments: Moments | None,
    ) -> GroupResult:
        own = {member: weights[layer_name(layer, f"{member}.weight")].astype(jnp.float32) for member in schemes}
        for member, w in own.items():
            check_weights(layer_name(layer, member), w)
        can_scale = len(schemes) == len(group.members) and self._can_fold(layer, group, weights)
        return quantize_group(
            own, schemes, self.recipe.method, moments, model_dtype=self.model.config.dtype, can_scale=can_scale
        )

    def _can_fold(self, layer: int, group: InputGroup, weights: Mapping[str, jax.Array]) -> bool:
        """Whether the layer before a group can take the inverse of AWQ's scales, and be written back."""
        if group.fold is None or group.fold_is_norm:
            return group.fold is not None
        bias = layer_name(layer, f"{group.fold}.bias")
        is_quantized = self.bits_of(layer_name(layer, group.fold)) != 16
        return is_quantized and (
            bias not in weights or isinstance(self.checkpoint.stored(bias, self.model), WholeTensors)
        )

    def _fold_scales(self, layer: int, group: InputGroup, scales: jax.Array, block: QuantizedBlock) -> None:
        """Divides the layer before a group by the scales that the group's weights were multiplied by."""
        dtype = self.model.config.dtype
        before = layer_name(layer, group.fold or "")
        if group.fold_is_norm:
            offset = norm_offset(self.model)
            norm = (block.weights[f"{before}.weight"].astype(jnp.float32) + offset) / scales - offset
            block.weights[f"{before}.weight"] = norm.astype(dtype)
            block.changed.add(f"{before}.weight")
            return
        block.encoded[before] = block.encoded[before].with_rows_divided(np.asarray(scales))
        block.weights[f"{before}.weight"] = self._dequantized(block.encoded[before])
        if f"{before}.bias" in block.weights:
            bias = block.weights[f"{before}.bias"].astype(jnp.float32) / scales
            block.weights[f"{before}.bias"] = bias.astype(dtype)
            block.changed.add(f"{before}.bias")
