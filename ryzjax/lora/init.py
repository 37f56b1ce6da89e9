"""How A and B begin: random (LoRA), from a weight's largest singular vectors (PiSSA), or from what quantizing it loses
(LoftQ).

A layer at a time: the caller gives a weight, takes what it becomes, and drops it before the next.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ryzjax.errors import ConfigError
from ryzjax.lora.adapter import LoraWeights
from ryzjax.lora.config import LoraConfig
from ryzjax.lora.merge import delta
from ryzjax.lora.norms import row_norms
from ryzjax.qarray import QArray, dequantize

__all__ = ["InitialWeights", "Quantize", "initial_weights", "largest_factors"]

Matrix = jax.Array | QArray
Quantize = Callable[[jax.Array], QArray]
"""float32 [N, K] -> as the base stores it."""

_LOFTQ_ROUNDS = 5
"""Alternations of LoftQ (T in the paper, which gains little after 5)."""
_EXACT_SIZE = 1024
"""Up to this many rows or columns the singular vectors are exact."""
_OVERSAMPLING = 16
_POWER_STEPS = 8
"""Of the randomized method: weights have spectra that fall slowly, which takes more than the usual 2."""


class InitialWeights(NamedTuple):
    """What a layer begins with.

    Attributes:
      update: A, B and the magnitude, float32.
      base: what the frozen weight becomes; None where it stays as it is.
    """

    update: LoraWeights
    base: Matrix | None


def initial_weights(
    config: LoraConfig,
    layer: str,
    weight: Matrix | jax.ShapeDtypeStruct,
    key: jax.Array,
    quantize: Quantize | None = None,
) -> InitialWeights:
    """The beginning of one layer's update; the same for the same key and layer, whatever else is adapted.

    default    A uniform in +-1 / sqrt(K), B zero: the layer's output does not change (Hu et al., arXiv 2106.09685)
    gaussian   A normal with deviation 1 / r, B zero
    pissa      scale * B A = the best approximation of W of rank r, the base W - scale * B A (Meng et al., 2404.02948)
    loftq      base Q = quantize(W - scale * B A) and B A of what that loses, in turn (Li et al., 2310.08659): the best
               of the rounds, so never worse than quantize(W)

    Args:
      config: ranks, scales and `init`.
      layer: its name.
      weight: [N, K]; of "default" and "gaussian" without DoRA the shape alone is looked at.
      key: of the run; the layer's name is folded in.
      quantize: how the base is stored, where it is quantized: needed by "loftq", and by "pissa" for a QArray.

    Raises:
      ConfigError: "pissa" of a QArray, or "loftq", without `quantize`; "loftq" of a weight that is quantized already;
        a rank that the weight does not have.
    """
    n, k = weight.shape
    rank, scale = config.rank_of(layer), config.scale_of(layer)
    key = jax.random.fold_in(key, zlib.crc32(layer.encode()))
    if config.init in ("default", "gaussian"):
        if config.init == "default":
            bound = 1.0 / math.sqrt(k)
            a = jax.random.uniform(key, (rank, k), jnp.float32, -bound, bound)
        else:
            a = jax.random.normal(key, (rank, k), jnp.float32) / rank
        update = LoraWeights(a=a, b=jnp.zeros((n, rank), jnp.float32))
        return InitialWeights(_with_magnitude(config, update, weight), None)
    assert not isinstance(weight, jax.ShapeDtypeStruct), f"{config.init} starts from the weight itself"
    if rank > min(n, k):
        raise ConfigError(f"LoRA init={config.init!r}: rank {rank} of {layer} is more than its {n} x {k} weight has")
    if config.init == "pissa":
        return _pissa(config, layer, weight, key, quantize, rank, scale)
    return _loftq(config, layer, weight, key, quantize, rank, scale)


def _pissa(
    config: LoraConfig, layer: str, weight: Matrix, key: jax.Array, quantize: Quantize | None, rank: int, scale: float
) -> InitialWeights:
    if isinstance(weight, QArray) and quantize is None:
        raise ConfigError(
            f"LoRA init='pissa': {layer} is quantized, and what PiSSA leaves of it must be quantized anew; start from "
            "a plain model, or take init='default'"
        )
    w = dequantize(weight) if isinstance(weight, QArray) else weight.astype(jnp.float32)
    update = largest_factors(w, rank, scale, key)
    rest = w - delta(update, scale)
    base = (
        rest.astype(weight.dtype) if isinstance(weight, jax.Array) and quantize is None else _quantized(quantize, rest)
    )
    return InitialWeights(_with_magnitude(config, update, base, scale), base)


def _loftq(
    config: LoraConfig, layer: str, weight: Matrix, key: jax.Array, quantize: Quantize | None, rank: int, scale: float
) -> InitialWeights:
    if isinstance(weight, QArray):
        raise ConfigError(
            f"LoRA init='loftq': {layer} is quantized already, and LoftQ makes up for what quantizing loses; start "
            "from the plain model"
        )
    if quantize is None:
        raise ConfigError(f"LoRA init='loftq': {layer} is not to be quantized; take init='pissa' or 'default'")
    w = weight.astype(jnp.float32)
    best: tuple[float, LoraWeights, QArray] | None = None
    update = None
    for round_key in jax.random.split(key, _LOFTQ_ROUNDS):
        base = quantize(w if update is None else w - delta(update, scale))
        lost = w - dequantize(base)
        update = largest_factors(lost, rank, scale, round_key)
        error = float(jnp.linalg.norm(lost - delta(update, scale)))
        if best is None or error < best[0]:
            best = error, update, base
    assert best is not None
    _, update, base = best
    return InitialWeights(_with_magnitude(config, update, base, scale), base)


def _quantized(quantize: Quantize | None, w: jax.Array) -> QArray:
    assert quantize is not None
    return quantize(w)


def _with_magnitude(
    config: LoraConfig, update: LoraWeights, base: Matrix | jax.ShapeDtypeStruct, scale: float = 0.0
) -> LoraWeights:
    """With DoRA's magnitudes, the norms of the rows as they are now: the output is that of base and update."""
    if not config.use_dora:
        return update
    assert not isinstance(base, jax.ShapeDtypeStruct), "DoRA starts from the norms of the weight's rows"
    if not scale:
        return replace(update, magnitude=row_norms(base))
    w = dequantize(base) if isinstance(base, QArray) else base.astype(jnp.float32)
    return replace(update, magnitude=row_norms(w + delta(update, scale)))


def largest_factors(w: Float[Array, "N K"], rank: int, scale: float, key: jax.Array) -> LoraWeights:
    """A and B with scale * B A = the best approximation of `w` of this rank, the singular values shared evenly.

    Exact where a side is at most 1024; else by the randomized method with power iterations (Halko et al., 0909.4061).
    """
    with jax.default_matmul_precision("highest"):
        if min(w.shape) <= _EXACT_SIZE:
            u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        else:
            u, s, vt = _randomized_svd(w, rank, key)
    root = jnp.sqrt(s[:rank] / scale)
    return LoraWeights(a=root[:, None] * vt[:rank], b=u[:, :rank] * root)


@partial(jax.jit, static_argnums=1)
def _randomized_svd(w: jax.Array, rank: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(U, S, V^T) of the largest singular values of [N, K]."""
    n, k = w.shape
    width = min(rank + _OVERSAMPLING, n, k)

    def basis(m: jax.Array) -> jax.Array:
        return jnp.linalg.qr(m)[0]

    q = basis(w @ jax.random.normal(key, (k, width), jnp.float32))
    for _ in range(_POWER_STEPS):
        q = basis(w @ basis(w.T @ q))
    u, s, vt = jnp.linalg.svd(q.T @ w, full_matrices=False)
    return q @ u, s, vt
