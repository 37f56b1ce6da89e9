"""Groups the linear layers of a block by their inputs. Layers of a group share moments, factors and AWQ's scales."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import FAMILIES, family_of
from ryzjax.models.weight_names import layer_name

__all__ = ["InputGroup", "input_groups", "norm_offset"]


@dataclass(frozen=True, kw_only=True)
class InputGroup:
    """Linear layers with the same inputs.

    Attributes:
      members: Names of the layers in the block, such as "attention.q".
      fold: The module before the group that can take the inverse of AWQ's scales into its weights: a norm
        ("attention_norm"), or a linear layer whose rows are the inputs ("mlp.up"). None if there is none.
      fold_is_norm: Whether `fold` is a norm.
    """

    members: tuple[str, ...]
    fold: str | None
    fold_is_norm: bool = False

    @property
    def observed(self) -> str:
        """The member whose inputs are observed, on behalf of all."""
        return self.members[0]


_GROUPS = (
    InputGroup(members=("attention.q", "attention.k", "attention.v"), fold="attention_norm", fold_is_norm=True),
    InputGroup(members=("attention.o",), fold="attention.v"),
    InputGroup(members=("mlp.gate", "mlp.up"), fold="mlp_norm", fold_is_norm=True),
    InputGroup(members=("mlp.down",), fold="mlp.up"),
)


def input_groups(model: AbstractModel, layer: int) -> list[InputGroup]:
    """Returns the input groups of block `layer`. Experts and routers are in none."""
    groups = []
    for group in _GROUPS:
        if any(layer_name(layer, member) not in model.linears for member in group.members):
            continue
        fold = group.fold
        if group.fold_is_norm and layer_name(layer, f"{fold}.weight") not in model.weights:
            fold = None  # OLMo: norms come after, not before
        if group.fold == "attention.v" and model.config.num_heads != model.config.num_kv_heads:
            fold = None  # with grouped queries, a row of v feeds several in features
        groups.append(InputGroup(members=group.members, fold=fold, fold_is_norm=group.fold_is_norm))
    return groups


def norm_offset(model: AbstractModel) -> float:
    """Returns the number that the family's norms add to their weights."""
    return FAMILIES[family_of(model.config)][1].norm_offset
