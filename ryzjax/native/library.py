"""The compiled CPU kernels: loaded and registered with XLA once, or the reason why not."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import jax

__all__ = ["ISAS", "isa", "native_refusal"]

_LIBRARY = Path(__file__).parent / "libryzjax_native.so"
_TARGETS = (
    "ryzjax_argmax",
    "ryzjax_attend",
    "ryzjax_linear",
    "ryzjax_rms_norm",
    "ryzjax_segment_backward",
    "ryzjax_segment_forward",
)
ISAS = ("avx512", "avx2", "portable")
"""The instruction sets there are kernels for; RYZJAX_NATIVE_ISA asks for one, for tests and comparisons."""


def native_refusal() -> str | None:
    """Why the kernels cannot run in this process; None where they can. Loads them at the first call."""
    return _load()[1]


def isa() -> str | None:
    """The instruction set whose kernels run: "avx512", "avx2" or "portable"; None where none can."""
    return _load()[0]


@cache
def _load() -> tuple[str | None, str | None]:
    """(instruction set, reason why not); one of them is None."""
    if os.environ.get("RYZJAX_NATIVE", "1") == "0":
        return None, "turned off by RYZJAX_NATIVE=0"
    if not _LIBRARY.is_file():
        return None, "not built: RyzJAX was installed without a C++ compiler; install g++ or clang++, then RyzJAX again"
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        library.ryzjax_native_isa.restype = ctypes.c_char_p
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        return None, f"{_LIBRARY.name} does not fit this machine or this jaxlib ({error}); install RyzJAX again"
    found = library.ryzjax_native_isa().decode()
    if not found:
        asked = os.environ.get("RYZJAX_NATIVE_ISA", "")
        return None, f"RYZJAX_NATIVE_ISA={asked} is not on this machine; expected one of {', '.join(ISAS)} that it has"
    return found, None
