"""GPTQ (Frantar et al., arXiv 2210.17323): quantizes in features sequentially and corrects the remaining ones.

After each feature is rounded, the features that are not rounded yet change to compensate for its error, as far as the
inputs correlate. Scales are fixed beforehand (static groups). Features can therefore be processed in the order of
their importance (act-order) and put back in their places, so that the order costs nothing at run time.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ryzjax.quant.grid import Grid

__all__ = ["Factor", "compensated", "factorize", "gptq"]

_BLOCK = 128
"""Features whose errors are gathered before the rest of the matrix is corrected: matmuls instead of rank-1 updates."""
_DAMPINGS = (0.01, 0.03, 0.1, 0.3)


class Factor(NamedTuple):
    """A factorized Hessian, shared by the layers with the same inputs.

    Attributes:
      upper: U [K, K], upper triangular, where U^T U is the inverse of the damped Hessian. Features are in `order`.
      order: Indices of the features, the most important first, int32 [K].
      dead: Whether a feature was zero in all inputs.
      damping: What was added to the diagonal, relative to its mean; NaN if no damping was enough.
    """

    upper: Float[Array, "K K"]
    order: Int[Array, " K"]
    dead: Bool[Array, " K"]
    damping: Float[Array, ""]


@jax.jit
def factorize(hessian: Float[Array, "K K"]) -> Factor:
    """Factorizes a Hessian with the least damping that works.

    XLA's Cholesky gives NaN instead of an error, so each damping is tried until the factor is finite.

    Let J reverse the order of the features. Then J H J = L L^T gives H^-1 = (J L^-1 J)^T (J L^-1 J). This needs one
    factorization and one triangular inverse, where the usual way takes two factorizations and a full inverse.

    Args:
      hessian: The mean of x x^T over the inputs x.
    """
    diagonal = jnp.diagonal(hessian)
    dead = diagonal <= 0
    mean = jnp.mean(jnp.where(dead, 0, diagonal))
    order = jnp.argsort(-diagonal)
    eye = jnp.eye(len(diagonal))
    plain = jnp.where(dead[:, None] | dead[None, :], 0, hessian) + eye * jnp.where(dead, jnp.maximum(mean, 1e-30), 0)
    plain = plain[order][:, order]

    def factor(damping: Array) -> Array:
        damped = plain + eye * damping * mean
        return jnp.linalg.cholesky(damped[::-1, ::-1])

    def is_bad(state: tuple[Array, Array]) -> Array:
        i, lower = state
        return ~jnp.all(jnp.isfinite(lower)) & (i < len(_DAMPINGS))

    dampings = jnp.array(_DAMPINGS)
    i, lower = lax.while_loop(
        is_bad, lambda state: (state[0] + 1, factor(dampings[state[0]])), (jnp.int32(0), jnp.full_like(plain, jnp.nan))
    )
    inverse = lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    finite = jnp.all(jnp.isfinite(inverse))
    return Factor(inverse[::-1, ::-1], order, dead, jnp.where(finite, dampings[i - 1], jnp.nan))


@jax.jit
def compensated(w: Float[Array, "N K"], factor: Factor, cross: Float[Array, "K K"]) -> Float[Array, "N K"]:
    """Returns weights whose outputs on drifted inputs are nearest to those of `w` on the plain model's inputs.

    Earlier layers have been quantized, so that the inputs are x where the plain model has x + d. The least-squares
    solution is `w + w C H^-1` with C = E[d x^T]. It corrects the part of d that x determines (the idea of GPTAQ,
    arXiv 2504.02692, and Qronos, arXiv 2505.11695).

    Args:
      w: The plain weights, float32.
      factor: The factorized H = E[x x^T].
      cross: C.
    """
    delta = (w @ cross)[:, factor.order] @ factor.upper.T @ factor.upper
    return w + jnp.zeros_like(w).at[:, factor.order].set(delta)


@partial(jax.jit, static_argnames=("low", "high"))
def gptq(w: Float[Array, "N K"], factor: Factor, grid: Grid, *, low: int, high: int) -> Float[Array, "N K"]:
    """Returns the q of each weight, as float32 whole numbers from `low` to `high`.

    Args:
      w: The weights, float32.
      factor: The factorized Hessian of the inputs.
      grid: The grid of each group. The G groups are K / G consecutive features each.
      low, high: The range of q.
    """
    n, k = w.shape
    group = k // grid.scale.shape[1]
    padding = -k % _BLOCK
    # Features are rows here, so that updates are contiguous.
    rows = jnp.pad(jnp.where(factor.dead, 0, w)[:, factor.order].T, ((0, padding), (0, 0)))
    upper = jnp.pad(factor.upper, ((0, padding), (0, padding))) + jnp.diag(
        jnp.pad(jnp.zeros(k), (0, padding), constant_values=1)
    )
    scale, zero = grid.scale.T, grid.zero.T
    group_of = jnp.pad(factor.order // group, (0, padding))

    def block(b: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, out = state
        first = b * _BLOCK
        here = lax.dynamic_slice_in_dim(rows, first, _BLOCK)
        strip = lax.dynamic_slice_in_dim(upper, first, _BLOCK)
        square = lax.dynamic_slice_in_dim(strip, first, _BLOCK, axis=1)

        def feature(i: Array, inner: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            here, q, errors = inner
            at = group_of[first + i]
            value = here[i]
            chosen = jnp.clip(jnp.round(value / scale[at]) + zero[at], low, high)
            error = (value - (chosen - zero[at]) * scale[at]) / square[i, i]
            return here - square[i][:, None] * error, q.at[i].set(chosen), errors.at[i].set(error)

        _, q, errors = lax.fori_loop(0, _BLOCK, feature, (here, jnp.zeros_like(here), jnp.zeros_like(here)))
        # Columns before the block are zero in `strip`, and those inside it are done.
        rows = rows - jnp.matmul(strip.T, errors, preferred_element_type=jnp.float32)
        return rows, lax.dynamic_update_slice_in_dim(out, q, first, 0)

    _, q = lax.fori_loop(0, (k + padding) // _BLOCK, block, (rows, jnp.zeros_like(rows)))
    return jnp.zeros((n, k)).at[:, factor.order].set(q[:k].T)
