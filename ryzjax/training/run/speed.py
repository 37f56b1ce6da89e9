"""What a run's tokens/s are worth: the FLOPs of its model, and the peak of its devices."""

from __future__ import annotations

import math

from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.run.flops import StepFlops, peak_flops
from ryzjax.training.run.loop import Speed

__all__ = ["speed_of"]


def speed_of(model: LoraModel | FullModel, *, sequence_tokens: int) -> Speed:
    """FLOPs a token of a step, taking rows to be one sequence each; experts as if all were used."""
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
