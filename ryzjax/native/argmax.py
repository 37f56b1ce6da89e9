"""argmax and logsumexp of rows by the native kernel. XLA on a CPU compares the numbers one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ryzjax.native.library import native_refusal

__all__ = ["native_argmax", "native_argmax_refusal"]


def native_argmax_refusal(x_dtype: jnp.dtype) -> str | None:
    """Returns why the kernel cannot take rows of a dtype, or None if it can."""
    if x_dtype != jnp.float32:
        return f"rows are {x_dtype}, not float32"
    return native_refusal()


def native_argmax(x: Float[Array, "S V"]) -> tuple[Int[Array, " S"], Float[Array, " S"]]:
    """Returns the index of the first largest number of each row, and the logsumexp of each row.

    Raises:
      ValueError: the kernel does not take the dtype or shape.
    """
    reason = native_argmax_refusal(x.dtype)
    if reason is None and (x.ndim != 2 or x.shape[1] == 0):
        reason = f"x is {x.shape}; expected [S, V]"
    if reason is not None:
        raise ValueError(f"native_argmax: {reason}")
    out = [jax.ShapeDtypeStruct(x.shape[:1], dtype) for dtype in (jnp.int32, jnp.float32)]
    argmax, logsumexp = jax.ffi.ffi_call("ryzjax_argmax", out)(x)
    return argmax, logsumexp
