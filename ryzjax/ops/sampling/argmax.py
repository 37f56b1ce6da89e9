"""argmax_logsumexp: what choosing a token needs of its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.native.argmax import native_argmax, native_argmax_refusal

__all__ = ["argmax_logsumexp"]


def argmax_logsumexp(x: Float[Array, "S V"]) -> tuple[Int[Array, " S"], Float[Array, " S"]]:
    """(the first of the largest, log sum exp) of each row; by the native kernel on a CPU."""
    if native_argmax_refusal(x.dtype) is not None:
        return _by_xla(x)
    return lax.platform_dependent(x, cpu=native_argmax, default=_by_xla)


def _by_xla(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(x, axis=-1).astype(jnp.int32), jax.nn.logsumexp(x, axis=-1)
