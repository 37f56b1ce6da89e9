"""Whether a merged model is the base with its adapter: the logits of both, in float32 arithmetic, over one text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ryzjax.errors import DataError
from ryzjax.evaluation.divergence import Divergence, divergence, reference_states
from ryzjax.lora.adapter import Adapter
from ryzjax.lora.model import adapted
from ryzjax.quant.open_model import OpenModel

__all__ = ["CHECK_TEXT", "TOLERANCES", "Tolerance", "check_tokens", "merge_divergence"]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a merged model may be from the base with its adapter.

    Attributes:
      logits: largest |difference| of a logit.
      mean_kl: nats a token.
    """

    logits: float
    mean_kl: float

    def excess(self, found: Divergence) -> str | None:
        """What is above it, in words; None where nothing is."""
        if not found.max_logit_difference <= self.logits:  # NaN is above it too
            return f"the largest difference of a logit is {found.max_logit_difference:.3g}, above {self.logits:g}"
        if not found.mean_kl <= self.mean_kl:
            return f"the mean KL is {found.mean_kl:.3g} nats a token, above {self.mean_kl:g}"
        return None


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(logits=1e-3, mean_kl=1e-6),
    "float16": Tolerance(logits=0.15, mean_kl=1e-4),
    "bfloat16": Tolerance(logits=1.0, mean_kl=5e-3),
    "int8": Tolerance(logits=math.inf, mean_kl=0.05),
    "int4": Tolerance(logits=math.inf, mean_kl=1.0),
}
"""By what the merged weights are rounded to: the rounding alone gives about a fifth of it or less, a wrong update
more. Measured on stories260K (logits with deviation 8), update of 2 to 10% of the weights, LoRA and DoRA:
float32 4e-5 and 4e-12, float16 0.025 and 3e-6, bfloat16 0.19 and 2e-4."""

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
"""Prose, numbers, code and JSON: what is read where the caller gives no text."""


def check_tokens(opened: OpenModel, text: str | None, limit: int) -> list[int]:
    """The tokens two models are compared on.

    Args:
      opened: a model, for its tokenizer.
      text: what to read; None for `CHECK_TEXT`.
      limit: no more tokens than this.

    Raises:
      DataError: fewer than 2 tokens.
    """
    tokens = opened.tokenizer.encode(CHECK_TEXT if text is None else text)[:limit]
    if len(tokens) < 2:
        raise DataError(f"the text has {len(tokens)} tokens; give one of at least 2 to compare models on")
    return tokens


def merge_divergence(
    base: OpenModel,
    adapter: Adapter,
    merged: OpenModel,
    tokens: Sequence[int],
    *,
    name: str,
    show_progress: bool = False,
) -> Divergence:
    """Runs a base with its adapter beside it, drops it, and compares a merged model with that.

    Args:
      base, merged: opened in float32, so that the arithmetic of neither adds to what merging changed.
      tokens: of `check_tokens`.
      name: of the adapter, for messages.

    Raises:
      ConfigError: the adapter does not fit the base.
      CheckpointError: weights cannot be read.
    """
    context = min(len(tokens), base.model.config.max_position, _CONTEXT_TOKENS)
    # The leaves are freed with the call that uses them.
    states = reference_states(
        *adapted(base.model, base.load(show_progress=show_progress), adapter, name=name),
        tokens,
        context_tokens=context,
        stride_tokens=max(1, context // 2),
        show_progress=show_progress,
    )
    return divergence(states, merged.model, merged.load(show_progress=show_progress), show_progress=show_progress)
