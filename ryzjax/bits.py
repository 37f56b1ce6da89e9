"""bfloat16 arrays stored as their uint16 bits.

XLA on CPU has no bfloat16 dynamic slice: one inside a loop upcasts the whole array to float32 first, once a call
(docs/log.md: 5x for the KV cache, 15x for a mixture of experts). Bits are sliced as they are, and turned into
floats after that; on an accelerator the conversion costs nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

__all__ = ["from_bits", "storage_dtype", "to_bits"]


def storage_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype that values of `dtype` are stored in: uint16 for bfloat16, else the same."""
    return jnp.dtype(jnp.uint16) if jnp.dtype(dtype) == jnp.bfloat16 else jnp.dtype(dtype)


def to_bits(x: Array, dtype: DTypeLike) -> Array:
    """`x` as an array of storage dtype `dtype` holds it: cast, as bits where that is uint16."""
    if jnp.dtype(dtype) == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def from_bits(x: Array) -> Array:
    """The values of a stored array: bfloat16 where it holds uint16 bits, else `x` itself."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
