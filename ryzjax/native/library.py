"""The compiled CPU kernels: loaded and registered with XLA once, or the reason why not."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import jax

__all__ = ["ISAS", "describe_kernels", "isa", "native_refusal", "quantize_function"]

_LIBRARY = Path(__file__).parent / "libryzjax_native.so"
_TARGETS = (
    "ryzjax_argmax",
    "ryzjax_attend",
    "ryzjax_linear",
    "ryzjax_rms_norm",
    "ryzjax_segment_backward",
    "ryzjax_segment_forward",
)
ISAS: Mapping[str, str] = {
    "avx512": "bfloat16 products and int8 products (VNNI) of AVX-512",
    "avx512-vnni": "int8 products of AVX-512 VNNI, float32 products of AVX2",
    "avx2-vnni": "int8 products of AVX-VNNI, float32 products of AVX2",
    "avx512-bw": "int8 products of AVX-512BW, float32 products of AVX2",
    "avx2": "int8 products of AVX2, float32 products (FMA)",
    "dotprod": "int8 dot products of Armv8.2, everything else in plain C++, which the compiler vectorizes",
    "portable": "plain C++, which the compiler vectorizes",
}
"""The instruction sets that have kernels, fastest first, and how each multiplies. RYZJAX_NATIVE_ISA selects one."""


def native_refusal() -> str | None:
    """Returns why the kernels cannot run in this process, or None if they can. The first call loads them."""
    return _load()[1]


def quantize_function() -> Callable[..., int]:
    """Returns the C function `ryzjax_quantize` (src/quantize_call.cc). It releases the GIL while it runs.

    Raises:
      RuntimeError: The kernels cannot run; the message gives the reason.
    """
    if reason := native_refusal():
        raise RuntimeError(f"no native kernels: {reason}")
    return _quantize_function()


def isa() -> str | None:
    """Returns the instruction set of the kernels, one of `ISAS`, or None if they cannot run."""
    return _load()[0]


def describe_kernels() -> str:
    """Returns which kernels run and why, as a phrase for tables; or why they do not run."""
    found, refusal = _load()
    if found is None:
        return f"do not run: {refusal}"
    asked = os.environ.get("RYZJAX_NATIVE_ISA")
    why = f"RYZJAX_NATIVE_ISA={asked} asks for it" if asked else "the best instruction set of this processor"
    return f"{found}: {ISAS[found]}; {why}"


@cache
def _load() -> tuple[str | None, str | None]:
    """Loads the library. Returns the instruction set, or why the kernels cannot run; the other one is None."""
    if os.environ.get("RYZJAX_NATIVE", "1") == "0":
        return None, "turned off by RYZJAX_NATIVE=0"
    if not _LIBRARY.is_file():
        return None, "not built: RyzJAX was installed without a C++ compiler; install g++ or clang++, then RyzJAX again"
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        library.ryzjax_native_isa.restype = ctypes.c_char_p
        _ = library.ryzjax_quantize  # a library of another version lacks it
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        return None, f"{_LIBRARY.name} does not fit this machine or this jaxlib ({error}); install RyzJAX again"
    found = library.ryzjax_native_isa().decode()
    if not found:
        asked = os.environ.get("RYZJAX_NATIVE_ISA", "")
        return None, f"RYZJAX_NATIVE_ISA={asked} is not on this machine; expected one of {', '.join(ISAS)} that it has"
    return found, None


@cache
def _quantize_function() -> Callable[..., int]:
    function = ctypes.CDLL(str(_LIBRARY)).ryzjax_quantize
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [number, number, number, pointer, number, number, number, pointer, number, pointer, pointer]
    function.restype = ctypes.c_int64
    return function
