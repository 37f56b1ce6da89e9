"""Linear layers of a block by what they are given: they share moments, factors, and AWQ's scales."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.models.registry import FAMILIES, AbstractModel, family_of

__all__ = ["InputGroup", "input_groups"]


@dataclass(frozen=True, kw_only=True)
class InputGroup:
    """Layers with the same inputs.

    Attributes:
      members: names in the block, such as "attention.q".
      fold: what makes the inputs and can take factors into its weights: a norm ("attention_norm"), or a linear layer
        ("mlp.up") whose rows they are; None where nothing can.
      fold_is_norm: which of the two.
    """

    members: tuple[str, ...]
    fold: str | None
    fold_is_norm: bool = False

    @property
    def observed(self) -> str:
        """The member whose inputs are observed."""
        return self.members[0]


_GROUPS = (
    InputGroup(members=("attention.q", "attention.k", "attention.v"), fold="attention_norm", fold_is_norm=True),
    InputGroup(members=("attention.o",), fold="attention.v"),
    InputGroup(members=("mlp.gate", "mlp.up"), fold="mlp_norm", fold_is_norm=True),
    InputGroup(members=("mlp.down",), fold="mlp.up"),
)


def input_groups(model: AbstractModel, layer: int) -> list[InputGroup]:
    """The groups of a block that has them: a mixture's experts and router are not among them."""
    prefix = f"layers.{layer}."
    groups = []
    for group in _GROUPS:
        if any(prefix + member not in model.linears for member in group.members):
            continue
        fold = group.fold
        if group.fold_is_norm and f"{prefix}{fold}.weight" not in model.weights:
            fold = None  # OLMo: the norm comes after
        if group.fold == "attention.v" and model.config.num_heads != model.config.num_kv_heads:
            fold = None  # a value row feeds several in features
        groups.append(InputGroup(members=group.members, fold=fold, fold_is_norm=group.fold_is_norm))
    return groups


def norm_offset(model: AbstractModel) -> float:
    """What the family's norms add to their weights."""
    return FAMILIES[family_of(model.config)][1].norm_offset
