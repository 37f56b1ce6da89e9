"""AWQ (Lin et al., arXiv 2306.00978): scale up the weights of in features that matter, and the inputs down by as much.

The scales of the inputs go into whatever made them: a norm's weight, or the rows of the layer before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["ScaleSearch", "output_error", "scaled_hessian", "search_scales"]

_GRID_POINTS = 20


class ScaleSearch:
    """What a search found.

    Attributes:
      scales: float32 [K], the weights' factors; ones where scaling does not pay.
      strength: the exponent of the activations' magnitudes, 0 to 1.
      error, plain_error: squared output error with and without.
    """

    def __init__(self, scales: Array, strength: float, error: float, plain_error: float):
        self.scales = scales
        self.strength = strength
        self.error = error
        self.plain_error = plain_error


@jax.jit
def output_error(w: Float[Array, "N K"], rounded: Float[Array, "N K"], hessian: Float[Array, "K K"]) -> Array:
    """Mean squared error of the outputs over a token, for inputs with mean x x^T `hessian`: tr(D H D^T)."""
    delta = rounded - w
    return jnp.sum((delta @ hessian) * delta)


@jax.jit
def scaled_hessian(hessian: Float[Array, "K K"], scales: Float[Array, " K"]) -> Float[Array, "K K"]:
    """Of inputs divided by `scales`."""
    return hessian / (scales[:, None] * scales[None, :])


def search_scales(
    weights: Sequence[Float[Array, "N K"]], hessian: Float[Array, "K K"], round_weight: Callable[[Array], Array]
) -> ScaleSearch:
    """The scales, over a grid of strengths, with the least output error of all layers that share the inputs.

    Args:
      weights: of those layers, float32.
      hessian: mean x x^T of the inputs.
      round_weight: float32 [N, K] -> the same, rounded as it would be stored.
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
