"""AWQ (Lin et al., arXiv 2306.00978): scales up the weights of important in features, and their inputs down by as much.

The inverse scales of the inputs are folded into the layer before: a norm's weight, or the rows of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["ScaleSearch", "output_error", "scaled_hessian", "search_scales"]

_GRID_POINTS = 20


class ScaleSearch:
    """The result of `search_scales`.

    Attributes:
      scales: The factors of the weights' columns, float32 [K]; ones if scaling does not lower the error.
      strength: The exponent of the activations' magnitudes, from 0 to 1; 0 if scaling does not lower the error.
      error: Squared output error with the scales.
      plain_error: Squared output error without scales.
    """

    def __init__(self, scales: Float[Array, " K"], strength: float, error: float, plain_error: float):
        self.scales = scales
        self.strength = strength
        self.error = error
        self.plain_error = plain_error


@jax.jit
def output_error(
    w: Float[Array, "N K"], rounded: Float[Array, "N K"], hessian: Float[Array, "K K"]
) -> Float[Array, ""]:
    """Returns the mean squared error of a token's outputs, tr(D H D^T) with D = rounded - w.

    Args:
      w: The plain weights.
      rounded: The quantized weights, dequantized.
      hessian: H, the mean of x x^T over the inputs x.
    """
    delta = rounded - w
    return jnp.sum((delta @ hessian) * delta)


@jax.jit
def scaled_hessian(hessian: Float[Array, "K K"], scales: Float[Array, " K"]) -> Float[Array, "K K"]:
    """Returns the Hessian of inputs that are divided by `scales`."""
    return hessian / (scales[:, None] * scales[None, :])


def search_scales(
    weights: Sequence[Float[Array, "_ K"]], hessian: Float[Array, "K K"], round_weight: Callable[[Array], Array]
) -> ScaleSearch:
    """Searches a grid of strengths for the scales with the least total output error of layers that share their inputs.

    Args:
      weights: The weights of those layers, float32.
      hessian: The mean of x x^T over the inputs x.
      round_weight: Quantizes a weight, float32 [N, K], and returns its dequantized values.
    """
    magnitude = jnp.sqrt(jnp.maximum(jnp.diagonal(hessian), 1e-12))

    def error(scales: Array) -> float:
        return float(sum(output_error(w, round_weight(w * scales) / scales, hessian) for w in weights))

    ones = jnp.ones_like(magnitude)
    plain = error(ones)
    best = ScaleSearch(ones, 0.0, plain, plain)
    for point in range(1, _GRID_POINTS + 1):
        strength = point / _GRID_POINTS
        scales = jnp.clip(magnitude**strength, 1e-4)
        scales = scales / jnp.sqrt(scales.max() * scales.min())
        found = error(scales)
        if found < best.error:
            best = ScaleSearch(scales, strength, found, plain)
    return best
