"""Moments of a group's inputs, and the Judge that measures quantized matrices by those of held-out text."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.quantizing.block_runner import InputSums

__all__ = ["Judge", "Moments"]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Second moments of a group's inputs, as means over tokens.

    Attributes:
      calibration: Moments of the calibration text, which methods fit.
      held_out: Moments of the held-out text, with drift, which judge the result.
    """

    calibration: InputSums
    held_out: InputSums

    def judge(self, w: Float[Array, "N K"]) -> Judge:
        """Returns the judge of candidates for the plain matrix `w`, float32 [N, K]."""
        sums = self.held_out
        assert sums.drift is not None
        return Judge(w, sums.inputs, *_constants(w, sums.inputs, sums.cross, sums.drift))


class Judge:
    """Measures how far the outputs of a quantized matrix are from the plain model's, on held-out text.

    The measure is E |r x - w (x + d)|^2 for a candidate r, where x is the input behind the quantized layers and x + d
    is the plain model's. It is computed from r - w, so that no large numbers cancel. Terms that do not depend on r are
    computed once.

    Args:
      w: The plain matrix, float32 [N, K].
      inputs: E x x^T, [K, K].
      cross: w E d x^T, [N, K].
      drift: E |w d|^2, a scalar.
      energy: E |w (x + d)|^2, a scalar.

    Attributes:
      energy: E |w (x + d)|^2, to make errors relative.
    """

    def __init__(
        self,
        w: Float[Array, "N K"],
        inputs: Float[Array, "K K"],
        cross: Float[Array, "N K"],
        drift: Float[Array, ""],
        energy: Float[Array, ""],
    ):
        self._terms = w, inputs, cross, drift
        self.energy = float(energy)

    def error(self, rounded: Float[Array, "N K"]) -> float:
        """Returns the mean squared distance of the outputs.

        Args:
          rounded: A candidate: the quantized matrix, dequantized, float32 [N, K].
        """
        return float(_error(rounded, *self._terms))


@jax.jit
def _constants(
    w: jax.Array, inputs: jax.Array, cross: jax.Array, drift: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    w_cross = w @ cross
    w_drift = jnp.sum((w @ drift) * w)
    energy = jnp.sum((w @ inputs) * w) + 2 * jnp.sum(w_cross * w) + w_drift
    return w_cross, w_drift, energy


@jax.jit
def _error(rounded: jax.Array, w: jax.Array, inputs: jax.Array, cross: jax.Array, drift: jax.Array) -> jax.Array:
    delta = rounded - w
    return jnp.sum((delta @ inputs) * delta) - 2 * jnp.sum(cross * delta) + drift
