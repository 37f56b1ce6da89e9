"""Whether a merged model is the base with its adapter: the logits of both, in float32 arithmetic, over one text.

What rounding to fewer bits moves depends on the model, so there is no fixed tolerance of it. The plain weights are
checked before they are rounded, with a tight one; then what was written is held to what the same weights answer when
they are rounded to nearest as they are loaded, by other code.
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
    "rounded_on_load",
    "rounding_limit",
]


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
}
"""By the dtype of the merged weights, before they are rounded to fewer bits. The dtype alone gives about a fifth of
it or less, a wrong update more. Measured on stories260K (logits with deviation 8), update of 2 to 10% of the weights,
LoRA and DoRA: float32 4e-5 and 4e-12, float16 0.025 and 3e-6, bfloat16 0.19 and 2e-4."""

_ROUNDING_FACTOR = 1.5
_ROUNDING_FLOOR_NATS = 1e-3

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


def adapter_states(
    base: OpenModel, adapter: Adapter, tokens: Sequence[int], *, name: str, show_progress: bool = False
) -> ReferenceStates:
    """Runs a base with its adapter beside it, and drops it; what is left is what merged models are compared with.

    Args:
      base: opened in float32, so that its arithmetic adds nothing to what merging changed.
      tokens: of `check_tokens`.
      name: of the adapter, for messages.

    Raises:
      ConfigError: the adapter does not fit the base.
      CheckpointError: weights cannot be read.
    """
    context = min(len(tokens), base.model.config.max_position, _CONTEXT_TOKENS)
    # The leaves are freed with the call that uses them.
    return reference_states(
        *adapted(base.model, base.load(show_progress=show_progress), adapter, name=name),
        tokens,
        context_tokens=context,
        stride_tokens=max(1, context // 2),
        show_progress=show_progress,
    )


def merge_divergence(live: ReferenceStates, merged: OpenModel, *, show_progress: bool = False) -> Divergence:
    """How far a merged model, opened in float32, is from a base with its live adapter.

    Raises:
      CheckpointError: weights cannot be read.
    """
    return divergence(live, merged.model, merged.load(show_progress=show_progress), show_progress=show_progress)


def rounded_on_load(plain: OpenModel, written: OpenModel) -> OpenModel:
    """The plain merged model, with the layers that are quantized in `written` rounded to nearest as they are loaded."""
    formats = {
        layer: replace(format, scale_dtype="bfloat16", has_zeros=False)
        for layer, format in written.model.quantization.items()
    }
    model = abstract_model(plain.model.config, plain.model.placement, formats)
    return replace(plain, plan=replace(plain.plan, model=model))


def rounding_limit(on_load: Divergence) -> float:
    """The largest mean KL, in nats a token, of a merged model written in few bits.

    1.5 times that of the same weights rounded as they are loaded, and 0.001 nats: of a sound rounding it is 0.7 to 1.1
    times (a tiny Llama and the demo model, int8 and int4), and of one whose scales of one layer in fourteen are doubled
    it is 2 times.

    Args:
      on_load: of `rounded_on_load`, from the same live adapter.
    """
    return _ROUNDING_FACTOR * on_load.mean_kl + _ROUNDING_FLOOR_NATS
