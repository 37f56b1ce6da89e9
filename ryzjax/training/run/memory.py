"""Memory in use now and at its peak."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax

__all__ = ["MemoryUse", "memory_use"]


class Device(Protocol):
    """What is read of a JAX device."""

    def memory_stats(self) -> Mapping[str, int] | None: ...


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes in use.

    Attributes:
      used_bytes: Bytes in use now.
      peak_bytes: Highest number of bytes in use since the process started.
      of_device: True for the fullest device; False for this process, if devices share the host's memory (CPU).
    """

    used_bytes: int
    peak_bytes: int
    of_device: bool


def memory_use(devices: Sequence[Device] | None = None) -> MemoryUse:
    """Returns the memory of the fullest of some devices (all local ones by default), as their allocator counts it.

    For a CPU, which has no such counts, it is the resident memory of this process.
    """
    stats = [counts for device in devices or jax.local_devices() if (counts := device.memory_stats())]
    if not stats:
        return MemoryUse(used_bytes=_resident_bytes(), peak_bytes=_peak_resident_bytes(), of_device=False)
    used = max(counts["bytes_in_use"] for counts in stats)
    peak = max(counts.get("peak_bytes_in_use", counts["bytes_in_use"]) for counts in stats)
    return MemoryUse(used_bytes=used, peak_bytes=peak, of_device=True)


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    # macOS tells a process only its peak.
    return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
