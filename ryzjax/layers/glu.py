"""What a gated MLP does between its projections: plain dataclasses, so that layers with equal ones share a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

__all__ = ["GLU", "Activation", "ClampedSwiGLU", "Gate"]

Activation = Literal["silu", "gelu", "gelu_tanh"]

_ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Gate(Protocol):
    """Joins the gate's and the up projection's outputs."""

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """[..., F], [..., F] -> [..., F]."""
        ...


@dataclass(frozen=True)
class GLU:
    """activation(gate) * up: SwiGLU with "silu", GeGLU with "gelu" (Shazeer, arXiv 2002.05202)."""

    activation: Activation

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """See `Gate`."""
        return _ACTIVATIONS[self.activation](gate) * up


@dataclass(frozen=True)
class ClampedSwiGLU:
    """GPT-OSS: both inputs clamped, gate * sigmoid(alpha * gate) * (up + 1) (transformers' `GptOssExperts`).

    Attributes:
      alpha: gain of the sigmoid.
      limit: upper bound of the gate, bound of the up projection's size.
    """

    alpha: float
    limit: float

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """See `Gate`."""
        gate = jnp.minimum(gate, self.limit)
        up = jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * gate * jax.nn.sigmoid(self.alpha * gate)
