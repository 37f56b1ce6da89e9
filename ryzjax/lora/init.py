"""The initial A and B: random (LoRA), from a weight's largest singular vectors (PiSSA), or from the error of quantizing
the weight (LoftQ).

Layers are initialized one at a time, so that the caller can free a weight before it reads the next one.
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
"""float32 [N, K] -> the matrix in the format of the base model."""

_LOFTQ_ROUNDS = 5
"""The number of alternations of LoftQ (T in the paper, which finds little gain after 5)."""
_EXACT_SIZE = 1024
"""The singular vectors are exact if a matrix has at most this many rows or columns."""
_OVERSAMPLING = 16
_POWER_STEPS = 8
"""Power iterations of the randomized SVD. Singular values of weights fall slowly, so the usual 2 are too few."""


class InitialWeights(NamedTuple):
    """The initial weights of one adapted layer.

    Attributes:
      update: A, B and the magnitude, in float32.
      base: The new frozen weight; None if it does not change.
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
    """Returns the initial update of one layer. It depends on the key and the layer only, not on other adapted layers.

    default    A is uniform in +-1 / sqrt(K) and B is zero, so the layer's output does not change (Hu et al.,
               arXiv 2106.09685).
    gaussian   A is normal with standard deviation 1 / r, and B is zero.
    pissa      scale * B A is the best approximation of W of rank r, and the base is W - scale * B A (Meng et al.,
               arXiv 2404.02948).
    loftq      In turn, the base is quantize(W - scale * B A), and scale * B A approximates W minus that base (Li et
               al., arXiv 2310.08659). The best round is returned, so it is never worse than quantize(W).

    Args:
      config: The ranks, the scales and `init`.
      layer: The name of the layer.
      weight: The weight [N, K]. "default" and "gaussian" without DoRA use its shape only.
      key: The random key of the run. The layer's name is folded into it.
      quantize: Quantizes the base. "loftq" needs it, and so does "pissa" for a QArray.

    Raises:
      ConfigError: `quantize` is missing; "loftq" is asked for with a weight that is already quantized; or the rank is
        larger than a side of the weight.
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
        raise ConfigError(f"LoRA init={config.init!r}: rank {rank} of {layer} is more than its {n} x {k} weight allows")
    if config.init == "pissa":
        return _pissa(config, layer, weight, key, quantize, rank, scale)
    return _loftq(config, layer, weight, key, quantize, rank, scale)


def _pissa(
    config: LoraConfig, layer: str, weight: Matrix, key: jax.Array, quantize: Quantize | None, rank: int, scale: float
) -> InitialWeights:
    if isinstance(weight, QArray) and quantize is None:
        raise ConfigError(
            f"LoRA init='pissa': {layer} is quantized, and what PiSSA leaves of it must be quantized again; start from "
            "a plain model, or use init='default'"
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
            f"LoRA init='loftq': {layer} is quantized already, and LoftQ compensates the error of quantizing; start "
            "from the plain model"
        )
    if quantize is None:
        raise ConfigError(f"LoRA init='loftq': {layer} is not to be quantized; use init='pissa' or 'default'")
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
    """Adds DoRA's magnitudes. They start as the norms of the rows, so that the output is that of base and update."""
    if not config.use_dora:
        return update
    assert not isinstance(base, jax.ShapeDtypeStruct), "DoRA starts from the norms of the weight's rows"
    if not scale:
        return replace(update, magnitude=row_norms(base))
    w = dequantize(base) if isinstance(base, QArray) else base.astype(jnp.float32)
    return replace(update, magnitude=row_norms(w + delta(update, scale)))


def largest_factors(w: Float[Array, "N K"], rank: int, scale: float, key: jax.Array) -> LoraWeights:
    """Returns A and B such that scale * B A is the best approximation of `w` of this rank.

    A and B each have the square roots of the singular values. The factors are exact if a side has at most 1024
    elements, and otherwise come from a randomized SVD with power iterations (Halko et al., arXiv 0909.4061).
    """
    with jax.default_matmul_precision("highest"):
        if min(w.shape) <= _EXACT_SIZE:
            u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        else:
            u, s, vt = _randomized_svd(w, rank, key)
    root = jnp.sqrt(s[:rank] / scale)
    return LoraWeights(a=root[:, None] * vt[:rank], b=u[:, :rank] * root)


@partial(jax.jit, static_argnums=1)
def _randomized_svd(
    w: Float[Array, "N K"], rank: int, key: jax.Array
) -> tuple[Float[Array, "N r"], Float[Array, " r"], Float[Array, "r K"]]:
    """Returns U, S and V^T for the largest singular values: at least `rank` of them, unless a side is smaller."""
    n, k = w.shape
    width = min(rank + _OVERSAMPLING, n, k)

    def basis(m: jax.Array) -> jax.Array:
        return jnp.linalg.qr(m)[0]

    q = basis(w @ jax.random.normal(key, (k, width), jnp.float32))
    for _ in range(_POWER_STEPS):
        q = basis(w @ basis(w.T @ q))
    u, s, vt = jnp.linalg.svd(q.T @ w, full_matrices=False)
    return q @ u, s, vt
