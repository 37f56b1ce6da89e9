"""Model FLOPs of a training step, and the share of the hardware's peak they reach (MFU)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, cast

import jax
import numpy as np

__all__ = ["PeakFlops", "StepFlops", "model_flops_utilization", "peak_flops"]

# Dense 16-bit tensor-core peaks with float32 accumulation, from NVIDIA's data sheets, by a part of the device kind.
# The first that fits counts, so that "H100 PCIe" stands before "H100".
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
    """FLOPs a model's maths needs, per trained token: recomputed activations and dequantization are not counted.

    A product of a token with a matrix of N weights costs 2N forward, 2N for the gradient of its input, and 2N for that
    of its weights, where they train: 6N a token (Kaplan et al., arXiv:2001.08361), 4N over a frozen base, 6N for the
    adapters on it. The first trained layer's input needs no gradient; it is counted, as is customary.

    Attributes:
      trained: weights in matrices that train, the head included and the embedding (a look-up) not.
      frozen: weights in matrices that do not; of experts, those of the experts a token goes to.
      attention: layers * query_heads * head_dim, summed over layers where they differ.
    """

    trained: int
    frozen: int
    attention: int

    def per_token(self, mean_context_tokens: float) -> float:
        """FLOPs a token.

        Args:
          mean_context_tokens: keys a query attends to, on average: half the length of a causal segment, or the window
            where that is less. Scores and weighted values are 2 FLOPs each a key and channel, times 3 with gradients.
        """
        return 6.0 * self.trained + 4.0 * self.frozen + 12.0 * self.attention * mean_context_tokens


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """FLOP/s of one device, and how they are known."""

    per_s: float
    source: Literal["data sheet", "measured"]


def peak_flops(device: Device) -> PeakFlops | None:
    """The 16-bit dense peak of a GPU by its data sheet; of a CPU, float32 products of 512 x 512 matrices, measured once
    over 0.2 s; None for a device that is in no table: then a run reports no MFU.
    """
    if device.platform == "cpu":
        return PeakFlops(per_s=_measured_flops(device), source="measured")
    kind = device.device_kind.casefold().replace("-", " ")
    # What a laptop's GPU reaches depends on the laptop.
    if "laptop" in kind:
        return None
    for name, per_s in _GPU_PEAKS:
        if f" {name} ".casefold() in f" {kind} ":
            return PeakFlops(per_s=per_s, source="data sheet")
    return None


def model_flops_utilization(
    flops_per_token: float, tokens_per_s: float, peak: PeakFlops | None, *, num_devices: int = 1
) -> float | None:
    """MFU (Chowdhery et al., arXiv:2204.02311): model FLOP/s over the peak of all devices; None without a peak.

    Args:
      num_devices: devices with a peak each; 1 for CPU devices, which share the machine that was measured.
    """
    return None if peak is None else flops_per_token * tokens_per_s / (peak.per_s * num_devices)


@cache
def _measured_flops(device: Device) -> float:
    """The best of the rounds that fit in `_MEASURE_S`: what else runs on the machine slows some of them."""
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
