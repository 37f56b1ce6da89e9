"""project: one device's products of the same activations with one or several matrices, plain or quantized.

On a CPU the native kernels multiply what they can read, all matrices in one call; the rest, what XLA does faster
(`crossover`), and every other platform, is left to XLA (`linear`, `quantized_linear`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax
from jaxtyping import Array, Float

from ryzjax.native.library import isa
from ryzjax.native.linear import native_linear_refusal, native_linears, native_quantized_refusal
from ryzjax.ops.linear.crossover import CROSSOVERS
from ryzjax.ops.linear.quantized import quantized_linear
from ryzjax.ops.linear.reference import linear
from ryzjax.qarray import QArray

__all__ = ["native_refusal_of", "project"]

Matrix = jax.Array | QArray


def project(
    x: Float[Array, "T K"], weights: Sequence[Matrix], *, summed_over: tuple[str, ...] = ()
) -> tuple[Float[Array, "T N"], ...]:
    """`x @ weight.T` for each weight [N, K], accumulated and returned in float32.

    Not to be left to automatic partitioning: over several devices it belongs inside `shard_map`.

    Args:
      x: activations; cast to a plain weight's dtype.
      weights: plain, or quantized without an order (`QArray.order`).
      summed_over: mesh axes that split K, inside `shard_map`: the results are reduced over them.
    """
    native = [i for i, weight in enumerate(weights) if native_refusal_of(x, weight) is None]
    out: dict[int, jax.Array] = {}
    if native:
        chosen = tuple(weights[i] for i in native)
        products = lax.platform_dependent(x, chosen, cpu=native_linears, default=_by_xla)
        products = lax.psum(products, summed_over) if summed_over else products
        out.update(zip(native, products, strict=True))
    for i, weight in enumerate(weights):
        if i in out:
            continue
        if isinstance(weight, QArray):
            out[i] = quantized_linear(x, weight, summed_over=summed_over)
        else:
            product = linear(x, weight)
            out[i] = lax.psum(product, summed_over) if summed_over else product
    return tuple(out[i] for i in range(len(weights)))


def native_refusal_of(x: jax.Array, weight: Matrix) -> str | None:
    """Why the native kernels would not take this product on a CPU; None where they do."""
    if isinstance(weight, QArray):
        return native_quantized_refusal(x.dtype, weight.format, x.shape[1])
    if reason := native_linear_refusal(x.dtype, weight.dtype):
        return reason
    rows = CROSSOVERS[str(isa())].plain_rows
    if rows is not None and x.shape[0] >= rows:
        return f"from {rows} rows on XLA multiplies bfloat16 faster ({isa()}; ryzjax/ops/linear/crossover.py)"
    return None


def _by_xla(x: jax.Array, weights: tuple[Matrix, ...]) -> tuple[jax.Array, ...]:
    return tuple(quantized_linear(x, w) if isinstance(w, QArray) else linear(x, w) for w in weights)
