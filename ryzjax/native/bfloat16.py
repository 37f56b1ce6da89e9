"""Whether this machine's CPU multiplies bfloat16 in hardware; one that does not converts to float32 and back."""

from __future__ import annotations

from pathlib import Path

from ryzjax.native.library import isa

__all__ = ["has_bfloat16_products"]

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = ("avx512_bf16", "amx_bf16")
"""How Linux names the instructions that the kernels (avx512) and XLA's own libraries multiply bfloat16 with."""


def has_bfloat16_products() -> bool:
    """Whether bfloat16 products run in hardware here.

    Where the native kernels run, their instruction set says it: only the avx512 kernels multiply bfloat16, and
    RYZJAX_NATIVE_ISA counts. Where they do not run, the CPU's flags say it; a CPU whose flags cannot be read has none.
    """
    kernels = isa()
    if kernels is not None:
        return kernels == "avx512"
    return any(flag in _cpu_flags() for flag in _FLAGS)


def _cpu_flags() -> frozenset[str]:
    """The flags of the first CPU; none where this is not Linux."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
