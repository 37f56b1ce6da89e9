"""Speed: the FLOPs a token of a model and the peak FLOP/s of its devices, which turn tokens/s into MFU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.run.flops import StepFlops, peak_flops

__all__ = ["Speed", "speed_of"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Turns tokens/s into MFU.

    Attributes:
      flops_per_token: FLOPs of the forward and backward pass of a token.
      peak_flops_per_s: Peak FLOP/s of all devices together; None if it is unknown.
    """

    flops_per_token: float
    peak_flops_per_s: float | None

    def mfu(self, tokens_per_s: float) -> float | None:
        """Returns the share of the peak that a speed reaches; None if the peak is unknown."""
        return None if self.peak_flops_per_s is None else self.flops_per_token * tokens_per_s / self.peak_flops_per_s


def speed_of(model: LoraModel | FullModel, *, sequence_tokens: int) -> Speed:
    """Returns the speed of a model. Each row counts as one sequence, and every expert counts as used."""
    linears, config = model.model.linears, model.model.config
    matrices = sum(math.prod(shape) for shape in linears.values())
    if "lm_head" not in linears:
        matrices += config.vocab_size * config.hidden_size  # the embedding table, as the head
    attention = config.num_layers * config.num_heads * config.head_dim
    if isinstance(model, LoraModel):
        trained = sum(model.lora.rank_of(layer) * sum(linears[layer]) for layer in model.layers)
        flops = StepFlops(trained=trained, frozen=matrices, attention=attention)
    else:
        flops = StepFlops(trained=matrices, frozen=0, attention=attention)
    devices = model.model.placement.mesh.devices.flat
    peak = peak_flops(devices[0])
    # CPU devices share the machine that was measured.
    count = 1 if devices[0].platform == "cpu" else len(list(devices))
    return Speed(
        flops_per_token=flops.per_token(sequence_tokens / 2),
        peak_flops_per_s=None if peak is None else peak.per_s * count,
    )
