"""Figures of a run: FLOPs against hand-worked numbers, peaks by device, and memory of the process and of devices."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

from ryzjax.training.run.flops import PeakFlops, StepFlops, model_flops_utilization, peak_flops
from ryzjax.training.run.memory import memory_use


@dataclass(frozen=True)
class Device:
    platform: str = "gpu"
    device_kind: str = ""
    stats: dict[str, int] | None = field(default=None, hash=False)

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


def test_flops_of_a_step():
    """A model of one attention layer without an MLP, whose products are counted one by one."""
    hidden, heads, head_dim, vocab, tokens = 16, 2, 8, 50, 10
    matrices = 4 * hidden * heads * head_dim + vocab * hidden
    attention = sum(2 * 2 * heads * head_dim * keys for keys in range(1, tokens + 1))
    full = 3 * (2 * matrices * tokens + attention)
    mean_context = np.mean(np.arange(1, tokens + 1))
    trained = StepFlops(trained=matrices, frozen=0, attention=heads * head_dim)
    assert trained.per_token(mean_context) * tokens == pytest.approx(full)
    # The gradients of a frozen base's weights are not computed.
    adapters = StepFlops(trained=100, frozen=matrices, attention=heads * head_dim)
    assert adapters.per_token(mean_context) * tokens == pytest.approx(full - 2 * matrices * tokens + 600 * tokens)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA Something New", None),
    ],
)
def test_peaks(kind: str, tflops: float | None):
    peak = peak_flops(Device(device_kind=kind))
    assert peak == (None if tflops is None else PeakFlops(per_s=tflops * 1e12, source="data sheet"))


def test_the_peak_of_a_cpu_is_measured_once():
    peak = peak_flops(jax.devices()[0])
    assert peak is not None and peak.source == "measured" and 1e8 < peak.per_s < 1e14
    assert peak_flops(jax.devices()[0]) == peak


def test_mfu():
    peak = PeakFlops(per_s=100e12, source="data sheet")
    assert model_flops_utilization(28e9, 1000, peak) == pytest.approx(0.28)
    assert model_flops_utilization(28e9, 1000, peak, num_devices=4) == pytest.approx(0.07)
    assert model_flops_utilization(28e9, 1000, None) is None


def test_memory_of_this_process():
    before = memory_use()
    kept = np.ones(30_000_000)
    after = memory_use()
    assert not after.of_device and after.used_bytes - before.used_bytes > 0.8 * kept.nbytes
    assert after.peak_bytes >= 0.95 * after.used_bytes
    del kept
    assert memory_use().peak_bytes >= after.peak_bytes


def test_memory_of_the_fullest_device():
    devices = [Device(stats={"bytes_in_use": n, "peak_bytes_in_use": p}) for n, p in ((5, 9), (7, 8))]
    use = memory_use(devices)
    assert (use.used_bytes, use.peak_bytes, use.of_device) == (7, 9, True)
