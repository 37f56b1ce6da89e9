"""An adapter's update as a dense matrix, a weight with its update merged, and the difference of two adapters."""

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
    """Returns scale * B A in float32."""
    a, b = update.a.astype(jnp.float32), update.b.astype(jnp.float32)
    return scale * jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)


def merged(weight: Float[Array, "N K"], update: LoraWeights, scale: float) -> Float[Array, "N K"]:
    """Returns W + scale * B A in float32. With DoRA, its rows are scaled to the magnitudes.

    The caller rounds the result once, to the dtype of the merged weight.
    """
    return _merged(weight, update, jnp.float32(scale))


@jax.jit
def _merged(weight: jax.Array, update: LoraWeights, scale: jax.Array) -> jax.Array:
    w = weight.astype(jnp.float32) + delta(update, scale)
    if update.magnitude is None:
        return w
    norms = jnp.linalg.norm(w, axis=1)
    # A row of zeros has no direction, and stays zero as in `AdaptedLinear`.
    gain = update.magnitude.astype(jnp.float32) / jnp.maximum(norms, jnp.sqrt(jnp.finfo(jnp.float32).tiny))
    return w * gain[:, None]


def difference(adapter: Adapter, initial: Adapter) -> Adapter:
    """Returns an adapter for the original base model from one that was trained with PiSSA.

    PiSSA subtracts B0 A0 from the base before training, so the update of the original base is B A - B0 A0. It is one
    adapter of twice the rank: scale * (B A - B0 A0) = scale * [B, -B0] [A; A0]. Alpha grows with the rank so that the
    scale stays the same. This does not hold for a quantized base, which the caller must exclude: Q(W - B0 A0) + B A is
    not a low-rank update of Q(W).

    Args:
      adapter: The trained adapter, for the base without B0 A0.
      initial: The adapter before training, with the same layers, ranks and scales.

    Raises:
      ConfigError: The adapters differ in layers, ranks or scales; or they are DoRA, whose rows are scaled after the
        sum.
    """
    config = adapter.config
    if config.use_dora or initial.config.use_dora:
        raise ConfigError("the difference of two DoRAs is not a DoRA; save the changed base with it, or merge it")
    for layer in {**adapter.weights, **initial.weights}:
        ours, theirs = adapter.weights.get(layer), initial.weights.get(layer)
        if ours is None or theirs is None or (ours.a.shape, ours.b.shape) != (theirs.a.shape, theirs.b.shape):
            raise ConfigError(f"trained and initial adapter differ in {layer!r}; they are from different runs")
        if config.scale_of(layer) != initial.config.scale_of(layer):
            raise ConfigError(f"trained and initial adapter scale {layer!r} differently; they are from different runs")
    alpha_factor = math.sqrt(2.0) if config.use_rslora else 2.0
    doubled = replace(
        config,
        rank=2 * config.rank,
        alpha=alpha_factor * config.alpha,
        rank_pattern={pattern: 2 * rank for pattern, rank in config.rank_pattern.items()},
        alpha_pattern={pattern: alpha_factor * alpha for pattern, alpha in config.alpha_pattern.items()},
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
