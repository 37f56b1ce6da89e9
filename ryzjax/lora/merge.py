"""An adapter's update as a matrix: added to a layer's weight, or taken between two adapters."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.errors import ConfigError
from ryzjax.lora.adapter import Adapter, LoraWeights

__all__ = ["delta", "difference", "merged"]


def delta(update: LoraWeights, scale: float | jax.Array) -> Float[Array, "N K"]:
    """scale * B A, in float32."""
    a, b = update.a.astype(jnp.float32), update.b.astype(jnp.float32)
    return scale * jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)


def merged(weight: Float[Array, "N K"], update: LoraWeights, scale: float) -> Float[Array, "N K"]:
    """The weight of a layer with its update in it, in float32: W + scale * B A, rows scaled to DoRA's magnitudes.

    The caller rounds once, to what the weight is to be.
    """
    return _merged(weight, update, jnp.float32(scale))


@jax.jit
def _merged(weight: jax.Array, update: LoraWeights, scale: jax.Array) -> jax.Array:
    w = weight.astype(jnp.float32) + delta(update, scale)
    if update.magnitude is None:
        return w
    norms = jnp.linalg.norm(w, axis=1)
    # A row of zeros has no direction; it stays zero, as in `AdaptedLinear`.
    gain = update.magnitude.astype(jnp.float32) / jnp.maximum(norms, jnp.sqrt(jnp.finfo(jnp.float32).tiny))
    return w * gain[:, None]


def difference(adapter: Adapter, initial: Adapter) -> Adapter:
    """B A - B0 A0 as one adapter of twice the rank, for the base that `initial` took its B0 A0 out of (PiSSA).

    scale * (B A - B0 A0) = scale * [B, -B0] [A; A0], so alpha grows with the rank and the scale stays.

    Args:
      adapter: as trained, on the base without B0 A0.
      initial: as it began: the same layers, ranks and scales.

    Raises:
      ConfigError: adapters that do not belong together; DoRA, whose rows are scaled after the sum; a quantized base
        is for the caller to know: Q(W - B0 A0) + B A is no low-rank update of Q(W).
    """
    config = adapter.config
    if config.use_dora or initial.config.use_dora:
        raise ConfigError("the difference of two DoRAs is no DoRA; save the changed base with it, or merge it")
    for layer in {**adapter.weights, **initial.weights}:
        ours, theirs = adapter.weights.get(layer), initial.weights.get(layer)
        if ours is None or theirs is None or (ours.a.shape, ours.b.shape) != (theirs.a.shape, theirs.b.shape):
            raise ConfigError(f"adapter and its beginning differ in {layer!r}; they are of two runs")
        if config.scale_of(layer) != initial.config.scale_of(layer):
            raise ConfigError(f"adapter and its beginning scale {layer!r} differently; they are of two runs")
    more = math.sqrt(2.0) if config.use_rslora else 2.0
    doubled = replace(
        config,
        rank=2 * config.rank,
        alpha=more * config.alpha,
        rank_pattern={pattern: 2 * rank for pattern, rank in config.rank_pattern.items()},
        alpha_pattern={pattern: more * alpha for pattern, alpha in config.alpha_pattern.items()},
        init="default",
    )
    weights = {
        layer: LoraWeights(
            a=jnp.concatenate([update.a, initial.weights[layer].a]),
            b=jnp.concatenate([update.b, -initial.weights[layer].b], axis=1),
        )
        for layer, update in adapter.weights.items()
    }
    return replace(adapter, config=doubled, weights=weights)
