"""scan_layers: a scan over stacked layers that keeps as little for the backward pass as it is told to.

JAX's own scan over `jax.checkpoint` keeps each layer's input too. This one differs in two ways, both measured
(docs/log.md): inputs are kept as their bits, because XLA for CPU would turn the whole stack of bfloat16 into float32
ahead of the backward loop; and it can keep the input of every n-th layer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.bits import from_bits, storage_dtype, to_bits

__all__ = ["Remat", "scan_layers", "with_remat"]

Remat = Literal["none", "dots", "full"]
"""What a layer keeps for the backward pass: all it computed, its matrix products, or its input alone."""

PyTree = object
Turn = Callable[..., jax.Array]
"""(x, slices of what is trained, slices of what is frozen, what all turns share) -> x of the same shape and dtype."""


def scan_layers(
    turn: Turn, x: jax.Array, trained: PyTree, frozen: PyTree, shared: PyTree, *, remat: Remat, remat_layers: int = 1
) -> jax.Array:
    """turn(... turn(x)), with gradients to x and `trained`.

    Args:
      trained, frozen: pytrees of arrays [count, ...], a slice a turn.
      shared: given to every turn.
      remat: see `Remat`.
      remat_layers: with "full", keep the input of every n-th turn, n the largest divisor of count that is no more than
        this. 1 computes each turn twice, more three times.
    """
    if remat == "full":
        count = len(jax.tree.leaves((trained, frozen))[0])
        group = max(n for n in range(1, min(remat_layers, count) + 1) if count % n == 0)
        return _scan(turn, group, x, trained, frozen, shared)

    def body(x: jax.Array, slices: tuple[PyTree, PyTree]) -> tuple[jax.Array, None]:
        return turn(x, *slices, shared), None

    return lax.scan(with_remat(body, remat), x, (trained, frozen))[0]


def with_remat(fn: Callable, remat: Remat) -> Callable:
    """`fn` under the policy of `jax.checkpoint` that does this."""
    if remat == "none":
        return fn
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat == "full" else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(fn, policy=policy)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(turn: Turn, group: int, x: jax.Array, trained: PyTree, frozen: PyTree, shared: PyTree) -> jax.Array:
    return _forward(turn, group, x, trained, frozen, shared)[0]


_Saved = tuple[jax.Array, PyTree, PyTree, PyTree]


def _forward(
    turn: Turn, group: int, x: jax.Array, trained: PyTree, frozen: PyTree, shared: PyTree
) -> tuple[jax.Array, _Saved]:
    def one(x: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
        return turn(x, *_slices(layer, (trained, frozen)), shared), None

    def one_group(x: jax.Array, layers: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lax.scan(one, x, layers)[0], _bits(x)

    x, inputs = lax.scan(one_group, x, _groups(group, trained, frozen))
    return x, (inputs, trained, frozen, shared)


def _backward(turn: Turn, group: int, saved: _Saved, grad: jax.Array) -> tuple[jax.Array, PyTree, None, None]:
    inputs, trained, frozen, shared = saved

    def again(x: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        return turn(x, *_slices(layer, (trained, frozen)), shared), _bits(x)

    def one(grad: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, PyTree]:
        layer, bits = inputs
        own, rest = _slices(layer, (trained, frozen))
        _, pull = jax.vjp(lambda x, own: turn(x, own, rest, shared), from_bits(bits), own)
        return pull(grad)

    def one_group(grad: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, PyTree]:
        layers, bits = inputs
        every = lax.scan(again, from_bits(bits), layers)[1] if group > 1 else bits[None]
        return lax.scan(one, grad, (layers, every), reverse=True)

    layers = _groups(group, trained, frozen)
    grad, trained_grad = lax.scan(one_group, grad, (layers, inputs), reverse=True)
    return grad, jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:]), trained_grad), None, None


_scan.defvjp(_forward, _backward)


def _slices(layer: jax.Array, arrays: PyTree) -> tuple[PyTree, PyTree]:
    """One layer's; sliced where they are used, for a group's weights must not be copied together."""
    return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, layer, keepdims=False), arrays)


def _bits(x: jax.Array) -> jax.Array:
    return to_bits(x, storage_dtype(x.dtype))


def _groups(group: int, *arrays: PyTree) -> jax.Array:
    """Indices of the layers, [count / group, group]."""
    count = len(jax.tree.leaves(arrays)[0])
    return jnp.arange(count, dtype=jnp.int32).reshape(-1, group)
