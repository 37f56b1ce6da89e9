"""Plans how a checkpoint's weights are loaded: as stored, dequantized, or quantized while loading.

`plan_weights` decides the format of each weight without reading any. `WeightPlan.load` then reads them. The choice is
the option `--weights auto | bf16 | int8 | int4 | nf4` of every command that runs a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.errors import ConfigError
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.loading.quantized_load import load_quantized
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.native.library import isa, native_refusal
from ryzjax.native.linear import native_quantized_refusal
from ryzjax.ops.linear.crossover import CROSSOVERS
from ryzjax.qarray import QFormat
from ryzjax.quant.nf4 import nf4_format
from ryzjax.quant.scheme import Scheme
from ryzjax.sharding import Placement

__all__ = ["ActivationChoice", "WeightChoice", "WeightPlan", "auto_activations", "plan_weights"]

ActivationChoice = Literal["auto", "bf16", "int8"]
"""The value of `--activations`. "bf16" multiplies low-bit weights with the activations as they are. "int8" quantizes
every 32 activations of a token to int8 first. "auto" chooses int8 for 4-bit weights if it is faster with this machine's
instruction set, and bf16 otherwise. Int8 activations add a hundredth to the error of 4-bit weights, but double the
error of int8 weights."""

WeightChoice = Literal["auto", "bf16", "int8", "int4", "nf4"]
"""The value of `--weights`. "auto" keeps weights as they are stored. "bf16" dequantizes a quantized checkpoint. "int8",
"int4" and "nf4" quantize a plain checkpoint to nearest while loading."""


@dataclass(frozen=True, kw_only=True)
class WeightPlan:
    """The format of every weight of a model in memory, and the checkpoint to read it from.

    Attributes:
      source: The checkpoint.
      stored: The abstract model whose weights are read from the files.
      model: The abstract model that runs. It is `stored` itself unless weights are quantized while loading.
    """

    source: CheckpointSource
    stored: AbstractModel
    model: AbstractModel

    def with_layers_on_host(self) -> WeightPlan:
        """Returns the same plan with the layers in the host's pinned memory.

        Where XLA quantizes weights while loading, they still pass through the device, one matrix at a time.

        Raises:
          ConfigError: The device has no pinned host memory; see `AbstractModel.with_layers_on_host`.
        """
        model = self.model.with_layers_on_host()
        return replace(self, stored=model if self.model is self.stored else self.stored, model=model)

    def with_activations(self, choice: ActivationChoice) -> WeightPlan:
        """Returns the same plan with the chosen activations for the linear layers with low-bit weights.

        Experts, routers, and layers whose format the integer kernels do not support keep their activations as they are.

        Raises:
          ConfigError: `choice` is "int8", and no layer supports it. The message gives the reason of the first layer.
        """
        if choice == "int8":
            if reason := self.int8_refusal():
                raise ConfigError(
                    f"activations='int8' is not possible here ({reason}); leave the option out, or set it to 'bf16', "
                    "which runs with all weights and on all devices"
                )
            return self._with_formats(self._int8_formats()[0])
        if choice == "auto" and auto_activations()[0] == "int8":
            return self._with_formats(self._int8_formats(only_4_bits=True)[0])
        return self._with_formats(self._bf16_formats())

    def int8_refusal(self) -> str | None:
        """Returns why `with_activations("int8")` is not possible, or None if it is."""
        formats, refusals = self._int8_formats()
        if formats != self._bf16_formats():
            return None
        return refusals[0] if refusals else "the model has no low-bit weights; choose --weights int8, int4 or nf4"

    @property
    def activations(self) -> str:
        """The activations of the linear layers, as a phrase such as "int8 for 34 of 35 low-bit weights"."""
        if counts := self.num_int8_products:
            return "int8 for {} of {} low-bit weights".format(*counts)
        if any(format.activations == "int8" for format in self.model.quantization.values()):
            return "int8 with one scale per token, from the checkpoint"
        return self.model.config.dtype

    @property
    def num_int8_products(self) -> tuple[int, int] | None:
        """The number of low-bit weights with int8 activations, and of all low-bit weights; None if there are none."""
        formats = self.model.quantization.values()
        count = sum(format.activations == "int8_groups" for format in formats)
        return (count, len(formats)) if count else None

    def _bf16_formats(self) -> dict[str, QFormat]:
        return {
            name: replace(format, activations=None) if format.activations == "int8_groups" else format
            for name, format in self.model.quantization.items()
        }

    def _int8_formats(self, *, only_4_bits: bool = False) -> tuple[dict[str, QFormat], list[str]]:
        """Returns the formats with int8 activations where they are possible, and the refusals of the other layers."""
        linears, dtype = self.model.linears, jnp.dtype(self.model.config.dtype)
        refusals: list[str] = []
        formats = self._bf16_formats()
        for name, format in list(formats.items()):
            shape = linears.get(name, (self.model.config.vocab_size, self.model.config.hidden_size))
            if len(shape) != 2 or name.endswith(".router") or (only_4_bits and not format.pack):
                continue
            reason = self._refusal(format) or native_quantized_refusal(dtype, format, shape[1])
            if reason is None:
                formats[name] = replace(format, activations="int8_groups")
            else:
                refusals.append(f"{name}: {reason}")
        return formats, refusals

    def _with_formats(self, formats: dict[str, QFormat]) -> WeightPlan:
        if formats == self.model.quantization:
            return self
        model = abstract_model(self.model.config, self.model.placement, formats)
        return replace(self, stored=model if self.model is self.stored else self.stored, model=model)

    def _refusal(self, format: QFormat) -> str | None:
        if self.model.placement.platform != "cpu":
            return f"the integer kernels are for a CPU, and the devices are {self.model.placement.platform}"
        return format.int8_groups_refusal()

    def load(self, *, show_progress: bool = False) -> dict[str, jax.Array]:
        """Reads the weights, and quantizes those that the plan says to quantize.

        Args:
          show_progress: Whether to show a progress bar on stderr.

        Returns:
          Weight name -> array, in the order of `model.weights`.

        Raises:
          CheckpointError: A tensor is missing, unexpected, or of another shape or dtype.
          ConfigError: A matrix to be quantized has NaN or infinite weights.
        """
        if self.model is self.stored:
            return load_weights(self.source, self.model, show_progress=show_progress)
        return load_quantized(self.source, self.stored, self.model, show_progress=show_progress)


def auto_activations() -> tuple[Literal["bf16", "int8"], str]:
    """Returns what `--activations auto` means for 4-bit weights on this machine, and why."""
    if jax.default_backend() != "cpu":
        return "bf16", f"the integer kernels are for a CPU, and the devices are {jax.default_backend()}"
    found = isa()
    if found is None:
        return "bf16", f"the integer kernels do not run: {native_refusal()}"
    if CROSSOVERS[found].int8_activations:
        return "int8", f"the table of ryzjax.ops.linear.crossover says that int8 is faster with {found}"
    return "bf16", f"the table of ryzjax.ops.linear.crossover does not say that int8 is faster with {found}"


def plan_weights(
    source: CheckpointSource,
    config: ModelConfig,
    placement: Placement,
    *,
    weights: WeightChoice = "auto",
    group: int = 64,
) -> WeightPlan:
    """Decides the format of each weight in memory. No weight is read.

    Args:
      source: The checkpoint.
      config: The model's config. Its dtype is the dtype of plain weights.
      placement: The devices, and the sharding of each weight over them.
      weights: "int8", "int4" and "nf4" apply to every linear layer except routers and experts, and to the embedding
        table. The table is int8 under all three: its rows are the model's inputs, and its head where that is tied.
      group: Group size: the in features that share a scale. A layer whose in features it does not divide becomes int8
        with one scale a row.

    Raises:
      ConfigError: int8, int4 or nf4 was asked for a checkpoint that is quantized already.
      CheckpointError: A file is damaged.
      UnsupportedModelError: The checkpoint's quantization is not supported.
      LayoutError: The layout does not fit the model, or splits a quantized group.
    """
    # A layout that would split a quantized group is no obstacle to dequantized weights.
    stored = abstract_model(config, placement) if weights == "bf16" else stored_model(source, config, placement)
    if weights in ("auto", "bf16"):
        return WeightPlan(source=source, stored=stored, model=stored)
    if stored.quantization:
        raise ConfigError(
            f"weights={weights!r} quantizes a plain checkpoint, and {source.name} is quantized already; leave the "
            "option out to run it as it is, or name the model that it was quantized from"
        )
    formats: dict[str, QFormat] = {"embed": _format("int8", group, config.hidden_size)}
    for name, shape in stored.linears.items():
        if len(shape) == 2 and not name.endswith(".router"):
            formats[name] = _format(weights, group, shape[1])
    return WeightPlan(source=source, stored=stored, model=abstract_model(config, placement, formats))


def _format(weights: Literal["int8", "int4", "nf4"], group: int, k: int) -> QFormat:
    # bfloat16 has the range of any weight's scale. q is chosen for the scales as they are stored, so their rounding
    # adds no second error.
    scheme = Scheme(bits=8 if weights == "int8" else 4, group=group).fitted(k)
    return nf4_format(group) if weights == "nf4" and scheme.bits == 4 else scheme.format(k, "bfloat16")
