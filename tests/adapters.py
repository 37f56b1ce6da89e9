"""Random adapters for tiny models, and the weights that result from merging them."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ryzjax.lora import Adapter, LoraConfig, LoraWeights

__all__ = ["random_adapter"]


def random_adapter(
    linears: Mapping[str, tuple[int, ...]],
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    size: float = 0.5,
    targets: tuple[str, ...] = ("all-linear",),
    rank_pattern: Mapping[str, int] | None = None,
) -> Adapter:
    """Returns an adapter whose update of each layer has entries of about `size` / sqrt(K), like the weights."""
    config = LoraConfig(rank=rank, alpha=alpha, targets=targets, rank_pattern=dict(rank_pattern or {}))
    rng = np.random.default_rng(seed)
    weights: dict[str, LoraWeights] = {}
    for layer in config.choose(linears):
        n, k = linears[layer]
        r = config.rank_of(layer)
        a = rng.standard_normal((r, k)) / k**0.5
        b = rng.standard_normal((n, r)) * size / (r**0.5 * config.scale_of(layer))
        weights[layer] = LoraWeights(a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32))
    return Adapter(config=config, weights=weights, base_model="tiny")
