"""argmax_logsumexp: the largest logit of each row, and the logsumexp of the row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ryzjax.native.argmax import native_argmax, native_argmax_refusal
from ryzjax.ops.dispatch import Kernel, Op, Probe

__all__ = ["argmax_logsumexp"]


def _by_xla(x: Float[Array, "S V"]) -> tuple[Int[Array, " S"], Float[Array, " S"]]:
    return jnp.argmax(x, axis=-1).astype(jnp.int32), jax.nn.logsumexp(x, axis=-1)


def _native_supports(x: jax.Array) -> str | None:
    return native_argmax_refusal(x.dtype)


def _probes(dtype: DTypeLike) -> list[Probe]:
    return [Probe(label="float32 logits", arrays=(jax.ShapeDtypeStruct((8, 64), jnp.float32),))]


argmax_logsumexp = Op(
    "argmax_logsumexp",
    reference=_by_xla,
    kernels=(
        Kernel(name="native", platform="cpu", supports=_native_supports, run=native_argmax, note="one pass over a row"),
    ),
    probes=_probes,
)
"""Takes logits [S, V]. Returns the index of the first largest logit of each row, and the logsumexp of each row."""
