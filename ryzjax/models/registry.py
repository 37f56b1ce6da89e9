"""Model families by name, built abstractly: shapes and shardings first, weights later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
from flax import nnx

from ryzjax.errors import UnsupportedModelError
from ryzjax.models.config import ModelConfig
from ryzjax.models.llama import Llama
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.sharding import Placement

__all__ = ["FAMILIES", "AbstractModel", "abstract_model"]

FAMILIES = {"llama": Llama}


@dataclass(frozen=True, kw_only=True)
class AbstractModel:
    """A model without weights.

    Attributes:
      config, placement: what it was built from.
      graphdef: the NNX structure.
      weights: dotted name -> shape, dtype, sharding, in the order of the leaves.
      state: the NNX state, shapes instead of arrays.
    """

    config: ModelConfig
    placement: Placement
    graphdef: nnx.GraphDef
    weights: dict[str, WeightSpec]
    state: nnx.State

    def merge(self, leaves: tuple[jax.Array, ...]) -> Llama:
        """The model over `leaves`; cheap inside jit, where it runs once per trace."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(jax.tree.structure(self.state), leaves))

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(math.prod(w.shape) for w in self.weights.values())


def abstract_model(config: ModelConfig, placement: Placement) -> AbstractModel:
    """Builds a family's model without allocating a weight.

    Raises:
      UnsupportedModelError: no such family.
      LayoutError: a weight does not divide over the layout's mesh.
    """
    if config.family not in FAMILIES:
        raise UnsupportedModelError(
            f"model family {config.family!r} is not supported; expected one of {list(FAMILIES)}"
        )
    model = nnx.eval_shape(lambda: FAMILIES[config.family](config, placement))
    graphdef, state = nnx.split(model)
    leaves = jax.tree.leaves(state)
    weights = {}
    for (path, variable), leaf in zip(nnx.to_flat_state(state), leaves, strict=True):
        metadata = variable.get_metadata()
        weights[".".join(map(str, path))] = WeightSpec(
            shape=leaf.shape,
            dtype=leaf.dtype,
            sharding=placement.sharding(metadata["axes"], leaf.shape, metadata["units"]),
        )
    return AbstractModel(config=config, placement=placement, graphdef=graphdef, weights=weights, state=state)
