"""RMSNorm by the native kernel, in one pass. XLA on a CPU makes four loops of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ryzjax.native.library import native_refusal

__all__ = ["native_rms_norm", "native_rms_norm_refusal"]

_NUMBERS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def native_rms_norm_refusal(x_dtype: jnp.dtype, weight_dtype: jnp.dtype) -> str | None:
    """Returns why the kernel cannot take arrays of these dtypes, or None if it can."""
    if x_dtype not in _NUMBERS or weight_dtype not in _NUMBERS:
        return f"x is {x_dtype} and the weight {weight_dtype}, not float32 or bfloat16"
    return native_refusal()


def native_rms_norm(
    x: Float[Array, "... E"], weight: Float[Array, " E"], *, eps: float, offset: float
) -> Float[Array, "... E"]:
    """Returns `x / sqrt(mean(x^2) + eps) * (offset + weight)`, computed in float32 and rounded once to the dtype of x.

    Raises:
      ValueError: the kernel does not take the dtypes or shapes.
    """
    reason = native_rms_norm_refusal(x.dtype, weight.dtype)
    if reason is None and weight.shape != x.shape[-1:]:
        reason = f"x is {x.shape} and the weight {weight.shape}; expected [..., E] and [E]"
    if reason is not None:
        raise ValueError(f"native_rms_norm: {reason}")
    call = jax.ffi.ffi_call("ryzjax_rms_norm", jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(x, weight, eps=np.float32(eps), offset=np.float32(offset))
