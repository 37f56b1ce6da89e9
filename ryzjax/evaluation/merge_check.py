"""Checks that a merged model computes the same as its base model with the live adapter.

The check compares the logits of both over one text, with float32 arithmetic. It has two steps:

1. The plain merged weights must agree within a tight tolerance (`TOLERANCES`).
2. If the weights are then quantized, there is no fixed tolerance, because the effect of quantizing depends on the
   model. The written model must diverge little more than the same plain weights quantized to nearest while loading,
   which different code does (`quantized_while_loading`, `quantization_limit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ryzjax.errors import DataError
from ryzjax.evaluation.divergence import Divergence, ReferenceStates, divergence, reference_states
from ryzjax.loading.open_model import OpenModel
from ryzjax.lora.adapter import Adapter
from ryzjax.lora.model import adapted
from ryzjax.models.registry import abstract_model

__all__ = [
    "CHECK_TEXT",
    "TOLERANCES",
    "Tolerance",
    "adapter_states",
    "check_tokens",
    "merge_divergence",
    "quantization_limit",
    "quantized_while_loading",
]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest accepted divergence of a merged model from the base with its adapter.

    Attributes:
      logits: The largest absolute difference of a logit.
      mean_kl: The mean KL, in nats per token.
    """

    logits: float
    mean_kl: float

    def excess(self, found: Divergence) -> str | None:
        """Returns a sentence about the figure that exceeds the tolerance; None if none does."""
        if not found.max_logit_difference <= self.logits:  # true for NaN
            return f"the largest difference of a logit is {found.max_logit_difference:.3g}, above {self.logits:g}"
        if not found.mean_kl <= self.mean_kl:
            return f"the mean KL is {found.mean_kl:.3g} nats a token, above {self.mean_kl:g}"
        return None


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(logits=1e-3, mean_kl=1e-6),
    "float16": Tolerance(logits=0.15, mean_kl=1e-4),
    "bfloat16": Tolerance(logits=1.0, mean_kl=5e-3),
}
"""The tolerance for each dtype of plain merged weights. Rounding to the dtype causes about a fifth of it or less, and a
wrong update causes more. Largest logit differences and mean KLs measured on stories260K, whose logits have a standard
deviation of 8, with LoRA and DoRA updates of 2 to 10% of the weights: float32 4e-5 and 4e-12, float16 0.025 and 3e-6,
bfloat16 0.19 and 2e-4."""

_QUANTIZATION_FACTOR = 1.5
_QUANTIZATION_FLOOR_NATS = 1e-3

_CONTEXT_TOKENS = 2048

CHECK_TEXT = """\
The ferry left the harbour at half past six, with eleven passengers and a crate of lemons on deck. Mira counted the
lights along the shore until the last of them went under the horizon; then she opened her notebook and wrote: what does
it cost to carry 120 crates over 45 kilometres, if one crate pays 3 coins for every 15 kilometres? "That is 9 coins a
crate," said the captain, who had read over her shoulder, "so 1080 for all of them." She thanked him and drew a map of
the islands: Holm in the north, Sand and Little Sand in the middle, and far to the south a rock with a lighthouse.

def total(crates, kilometres):
    return crates * 3 * (kilometres // 15)

{"name": "Holm", "people": 214, "has_harbour": true, "ferries": ["06:30", "12:15", "19:00"]}
"""
"""The default text of the check: prose, numbers, code and JSON."""


def check_tokens(opened: OpenModel, text: str | None, limit: int) -> list[int]:
    """Returns the token ids of the text that models are compared on.

    Args:
      opened: A model with the tokenizer.
      text: The text; None for `CHECK_TEXT`.
      limit: The largest number of tokens to return.

    Raises:
      DataError: There are fewer than 2 tokens.
    """
    tokens = opened.tokenizer.encode(CHECK_TEXT if text is None else text)[:limit]
    if len(tokens) < 2:
        raise DataError(f"the text has {len(tokens)} tokens; give a text of at least 2 tokens to compare models on")
    return tokens


def adapter_states(
    base: OpenModel, adapter: Adapter, tokens: Sequence[int], *, name: str, show_progress: bool = False
) -> ReferenceStates:
    """Runs the base model with the live adapter over the check text, and frees its weights except the head's.

    Args:
      base: The base model, opened in float32 so that only the merge causes differences.
      adapter: The adapter.
      tokens: The result of `check_tokens`.
      name: The name of the adapter in error messages.
      show_progress: Whether to show progress bars on stderr.

    Raises:
      ConfigError: The adapter does not fit the base.
      CheckpointError: Weights cannot be read.
    """
    context = min(len(tokens), base.model.config.max_position, _CONTEXT_TOKENS)
    # Nothing else refers to the leaves, so they are freed when the call returns.
    return reference_states(
        *adapted(base.model, base.load(show_progress=show_progress), adapter, name=name),
        tokens,
        context_tokens=context,
        stride_tokens=max(1, context // 2),
        show_progress=show_progress,
    )


def merge_divergence(live: ReferenceStates, merged: OpenModel, *, show_progress: bool = False) -> Divergence:
    """Returns the divergence of a merged model, opened in float32, from its base with the live adapter.

    Args:
      live: The result of `adapter_states`.
      merged: The merged model.
      show_progress: Whether to show progress bars on stderr.

    Raises:
      CheckpointError: Weights cannot be read.
    """
    return divergence(live, merged.model, merged.load(show_progress=show_progress), show_progress=show_progress)


def quantized_while_loading(plain: OpenModel, written: OpenModel) -> OpenModel:
    """Returns the plain merged model such that loading quantizes the layers that are quantized in `written`.

    Args:
      plain: The merged model with plain weights.
      written: The merged model as it was written in a low-bit format.
    """
    formats = {
        layer: replace(format, scale_dtype="bfloat16", has_zeros=False, zero_dtype="integer")
        for layer, format in written.model.quantization.items()
    }
    model = abstract_model(plain.model.config, plain.model.placement, formats)
    return replace(plain, plan=replace(plain.plan, model=model))


def quantization_limit(while_loading: Divergence) -> float:
    """Returns the largest accepted mean KL of a merged model in a low-bit format, in nats per token.

    It is 1.5 times the KL of the same weights quantized while loading, plus 0.001 nats. A correctly quantized model has
    0.7 to 1.1 times that KL (measured with int8 and int4 on a tiny Llama and on the demo model). A model with doubled
    scales in one of fourteen layers has 2 times that KL.

    Args:
      while_loading: The divergence of `quantized_while_loading` from the same live adapter.
    """
    return _QUANTIZATION_FACTOR * while_loading.mean_kl + _QUANTIZATION_FLOOR_NATS
