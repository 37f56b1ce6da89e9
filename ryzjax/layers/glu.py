"""The gates that combine the gate and up projections of a gated MLP.

They are plain dataclasses that compare by value, so that layers with equal gates share one trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["GLU", "Activation", "ClampedSwiGLU", "Gate"]

Activation = Literal["silu", "gelu", "gelu_tanh"]
"""The activation of a gate. "gelu" is the exact GELU, "gelu_tanh" its approximation by tanh."""

_ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Gate(Protocol):
    """Combines the outputs of the gate and up projections."""

    def __call__(self, gate: Float[Array, "*batch F"], up: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        """Returns the input of the down projection."""
        ...


@dataclass(frozen=True)
class GLU:
    """activation(gate) * up (Shazeer, arXiv 2002.05202).

    Attributes:
      activation: "silu" gives SwiGLU, "gelu" and "gelu_tanh" give GeGLU.
    """

    activation: Activation

    def __call__(self, gate: Float[Array, "*batch F"], up: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        """Returns activation(gate) * up."""
        return _ACTIVATIONS[self.activation](gate) * up


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gate * sigmoid(alpha * gate) * (up + 1) with clamped inputs (GPT-OSS; transformers' `GptOssExperts`).

    Attributes:
      alpha: the gain of the sigmoid.
      limit: the upper bound of the gate. The up projection is clamped to [-limit, limit].
    """

    alpha: float
    limit: float

    def __call__(self, gate: Float[Array, "*batch F"], up: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        """Returns the gated product of the clamped inputs."""
        gate = jnp.minimum(gate, self.limit)
        up = jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * gate * jax.nn.sigmoid(self.alpha * gate)
