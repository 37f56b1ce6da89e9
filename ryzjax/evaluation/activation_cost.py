"""What int8 activations cost: one model is compared with one reference twice, with int8 and with bfloat16 activations.

Both runs share the loaded weights and the states of the reference. The difference is taken token by token, so that its
standard error is far smaller than those of the two means.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from ryzjax.evaluation.divergence import Divergence, ReferenceStates, summarize, token_figures
from ryzjax.evaluation.statistics import mean_and_error
from ryzjax.models.abstract import AbstractModel

__all__ = ["ActivationCost", "activation_cost"]


@dataclass(frozen=True, kw_only=True)
class ActivationCost:
    """The divergences of one model with both kinds of activations, and their difference.

    Attributes:
      bf16: The divergence with bfloat16 activations: the cost of the weights alone.
      int8: The divergence with int8 activations.
      added_kl: The KL that int8 activations add, in nats per token: `int8.mean_kl - bf16.mean_kl`.
      added_kl_standard_error: The standard error of `added_kl`, from the differences of single tokens, as if tokens
        were independent.
      share_of_kl: `added_kl` divided by the KL with bfloat16 activations; None if that is 0.
    """

    bf16: Divergence
    int8: Divergence
    added_kl: float
    added_kl_standard_error: float
    share_of_kl: float | None


def activation_cost(
    reference: ReferenceStates,
    bf16: AbstractModel,
    int8: AbstractModel,
    leaves: tuple[jax.Array, ...],
    *,
    show_progress: bool = False,
) -> ActivationCost:
    """Compares a model with a reference that has been run, once with each kind of activations.

    Args:
      reference: The result of `reference_states`.
      bf16, int8: The abstract model with bfloat16 and with int8 activations.
      leaves: The weights, in the order of `bf16.weights`, which is that of `int8.weights`.
      show_progress: Whether to show progress bars on stderr.

    Raises:
      ConfigError: The vocabularies differ in size, or the model's context is shorter than the windows.
    """
    assert list(bf16.weights) == list(int8.weights)
    plain, integer = (
        token_figures(reference, model, leaves, title=f"KL, {name} activations", show_progress=show_progress)
        for name, model in (("bf16", bf16), ("int8", int8))
    )
    added, error = mean_and_error(integer[0] - plain[0])
    weights_only = summarize(reference, plain)
    return ActivationCost(
        bf16=weights_only,
        int8=summarize(reference, integer),
        added_kl=added,
        added_kl_standard_error=error,
        share_of_kl=added / weights_only.mean_kl if weights_only.mean_kl > 0 else None,
    )
