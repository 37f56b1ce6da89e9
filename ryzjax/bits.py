"""bfloat16 arrays stored as their uint16 bits.

XLA on a CPU has no bfloat16 dynamic slice. A slice inside a loop converts the whole array to float32 first, in every
call (docs/log.md: 5x for the KV cache, 15x for a mixture of experts). Bits are sliced as they are and converted to
bfloat16 afterwards. On an accelerator the conversion costs nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

__all__ = ["from_bits", "storage_dtype", "to_bits"]


def storage_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype that stores values of `dtype`: uint16 for bfloat16, otherwise `dtype`."""
    return jnp.dtype(jnp.uint16) if jnp.dtype(dtype) == jnp.bfloat16 else jnp.dtype(dtype)


def to_bits(x: Array, dtype: DTypeLike) -> Array:
    """Converts `x` to the storage dtype `dtype`. uint16 stands for the bits of bfloat16."""
    if jnp.dtype(dtype) == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def from_bits(x: Array) -> Array:
    """Returns the values of a stored array: bfloat16 if it holds uint16 bits, otherwise `x` itself."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
