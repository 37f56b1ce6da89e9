"""AbstractModel: a model without weights. It holds the structure, and the shape, dtype and sharding of each weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jax
from flax import nnx

from ryzjax.layers.rope import LongRope, Rope
from ryzjax.models.config import ModelConfig
from ryzjax.models.decoder import Decoder
from ryzjax.models.weight_names import split_layer
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.qarray import QFormat
from ryzjax.sharding import Placement
from ryzjax.sharding.host_memory import check_host_memory, host_sharding

__all__ = ["AbstractModel"]


@dataclass(frozen=True, kw_only=True)
class AbstractModel:
    """A model without weights, as built by `ryzjax.models.registry.abstract_model`.

    Attributes:
      config, placement: The config and the placement that the model was built from.
      graphdef: The NNX structure.
      weights: Dotted name -> shape, dtype and sharding of each weight, in the order of the leaves.
        `ryzjax.models.weight_names` describes the names.
      state: The NNX state, with shapes instead of arrays.
      ropes: The distinct rotary embeddings of the layers.
      linears: Name of each linear layer -> shape of its weight, [N, K], or [X, N, K] for experts.
      quantization: Name of each quantized linear layer -> the format of its weight.
    """

    config: ModelConfig
    placement: Placement
    graphdef: nnx.GraphDef
    weights: dict[str, WeightSpec]
    state: nnx.State
    ropes: tuple[Rope, ...]
    linears: Mapping[str, tuple[int, ...]]
    quantization: Mapping[str, QFormat] = field(default_factory=dict)

    @property
    def outer_names(self) -> tuple[str, ...]:
        """The names of the weights outside the layers: embedding, final norm, and head unless it is tied."""
        return tuple(name for name in self.weights if split_layer(name)[0] is None)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The names of the weights that `Decoder.logits` reads: the final norm, and the head or the tied embedding."""
        modules = ("final_norm.", "embed." if self.config.tie_embeddings else "lm_head.")
        return tuple(name for name in self.weights if name.startswith(modules))

    def layer_names(self, layer: int) -> tuple[str, ...]:
        """Returns the names of the weights of one layer, given its index."""
        return tuple(name for name in self.weights if split_layer(name)[0] == layer)

    def layer_linears(self, layer: int | None) -> tuple[str, ...]:
        """Returns the names of the linear layers in one layer, given its index, or outside the layers for None."""
        return tuple(name for name in self.linears if split_layer(name)[0] == layer)

    def merge(self, leaves: tuple[jax.Array | jax.ShapeDtypeStruct, ...]) -> Decoder:
        """Returns the model over `leaves`. This is cheap inside jit, where it runs once per trace."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(jax.tree.structure(self.state), leaves))

    def merge_some(self, weights: Mapping[str, jax.Array]) -> Decoder:
        """Returns the model over some of its weights, by name. This is cheap inside jit.

        The other weights are shapes without values, so a computation that reads one of them fails.
        """
        return self.merge(
            tuple(
                weights[name] if name in weights else jax.ShapeDtypeStruct(spec.shape, spec.stored_dtype)
                for name, spec in self.weights.items()
            )
        )

    def with_layers_on_host(self) -> AbstractModel:
        """Returns the same model with the weights of its layers in the host's pinned memory.

        Raises:
          ConfigError: The devices have no pinned host memory.
        """
        check_host_memory(self.placement)
        outer = frozenset(self.outer_names)
        weights = {
            name: spec if name in outer else replace(spec, sharding=host_sharding(spec.sharding))
            for name, spec in self.weights.items()
        }
        return replace(self, weights=weights)

    @property
    def rope_switch_length(self) -> int | None:
        """The length in tokens above which a sequence uses other rotations (`LongRope`). None for most models."""
        return next((rope.switch_length for rope in self.ropes if isinstance(rope, LongRope)), None)

    @property
    def num_parameters(self) -> int:
        """The number of parameters. A tied head counts once, and a quantized weight as the matrix that it encodes."""
        total = 0
        for name, spec in self.weights.items():
            module, _, leaf = name.rpartition(".weight.")
            if module not in self.quantization:
                total += math.prod(spec.shape)
            elif leaf == "values":
                total += math.prod(spec.shape) * (2 if self.quantization[module].pack else 1)
        return total
