"""FLOPs of a training step, and the share of the hardware's peak that they reach (MFU)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, cast

import jax
import numpy as np

__all__ = ["PeakFlops", "StepFlops", "model_flops_utilization", "peak_flops"]

# Dense 16-bit tensor-core peaks with float32 accumulation, from NVIDIA's data sheets, by a part of the device kind.
# The first match counts, so "H100 PCIe" comes before "H100".
_GPU_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835.5e12),
    ("H100 PCIe", 756.5e12),
    ("H100", 989.4e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362.05e12),
    ("L40", 181.05e12),
    ("L4", 121e12),
    ("V100 PCIE", 112e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("RTX 6000 Ada", 364.2e12),
)

_MEASURE_S = 0.2
_MEASURE_SIZE = 512


class Device(Protocol):
    """What is read of a JAX device."""

    @property
    def platform(self) -> str: ...

    @property
    def device_kind(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs per trained token that a model's maths needs. Recomputed activations and dequantization do not count.

    A product of a token with a matrix of N weights costs 2N forward, 2N for the gradient of its input and, if the
    matrix is trained, 2N for the gradient of its weights. That is 6N per token (Kaplan et al., arXiv:2001.08361), 4N
    over a frozen base and 6N for the adapters on it. The input of the first trained layer needs no gradient, but it is
    counted, as is customary.

    Attributes:
      trained: Weights in matrices that are trained, including the head but not the embedding, which is a look-up.
      frozen: Weights in matrices that are frozen. For experts, only those that a token is routed to.
      attention: layers * query heads * head dim, summed over layers if they differ.
    """

    trained: int
    frozen: int
    attention: int

    def per_token(self, mean_context_tokens: float) -> float:
        """Returns FLOPs per token.

        Args:
          mean_context_tokens: Mean number of keys that a query attends to: half the length of a causal segment, or the
            window if that is less. Scores and weighted values cost 2 FLOPs each per key and channel, times 3 with
            gradients.
        """
        return 6.0 * self.trained + 4.0 * self.frozen + 12.0 * self.attention * mean_context_tokens


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """Peak FLOP/s of one device.

    Attributes:
      per_s: FLOP/s.
      source: Where the number comes from.
    """

    per_s: float
    source: Literal["data sheet", "measured"]


def peak_flops(device: Device) -> PeakFlops | None:
    """Returns the peak of a device; None for a device without a known peak, for which a run reports no MFU.

    For a GPU it is the 16-bit dense peak of its data sheet. For a CPU it is the speed of float32 products of 512 x 512
    matrices, measured once over 0.2 s.
    """
    if device.platform == "cpu":
        return PeakFlops(per_s=_measured_flops(device), source="measured")
    kind = device.device_kind.casefold().replace("-", " ")
    # The peak of a laptop's GPU depends on the laptop.
    if "laptop" in kind:
        return None
    for name, per_s in _GPU_PEAKS:
        if f" {name} ".casefold() in f" {kind} ":
            return PeakFlops(per_s=per_s, source="data sheet")
    return None


def model_flops_utilization(
    flops_per_token: float, tokens_per_s: float, peak: PeakFlops | None, *, num_devices: int = 1
) -> float | None:
    """Returns MFU (Chowdhery et al., arXiv:2204.02311): model FLOP/s over the peak of all devices; None without a peak.

    Args:
      flops_per_token: FLOPs of a token.
      tokens_per_s: Speed of the run.
      peak: Peak of one device.
      num_devices: Devices with a peak each; 1 for CPU devices, which share the machine that was measured.
    """
    return None if peak is None else flops_per_token * tokens_per_s / (peak.per_s * num_devices)


@cache
def _measured_flops(device: Device) -> float:
    """Returns the best of the rounds that fit in `_MEASURE_S`, because other load on the machine slows some of them."""
    product = jax.jit(lambda x: x @ x)
    x = jax.device_put(
        np.full((_MEASURE_SIZE,) * 2, 1 / _MEASURE_SIZE, np.float32), cast("jax.sharding.SingleDeviceSharding", device)
    )
    product(x).block_until_ready()
    fastest, end = float("inf"), time.perf_counter() + _MEASURE_S
    while (start := time.perf_counter()) < end:
        product(x).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * _MEASURE_SIZE**3 / fastest
