"""scan_layers: a scan over stacked layers that keeps as little for the backward pass as it is told to.

JAX's own scan over `jax.checkpoint` keeps each layer's input too. This one differs in four ways, all measured
(docs/log.md). Inputs are kept as their bits, because XLA for CPU would turn the whole stack of bfloat16 into float32
ahead of the backward loop. It can keep the input of every n-th layer alone. Then it goes through a layer by its stages,
attention and MLP, so that the temporaries of one are gone when the other's begin. And gradients of the layers can be
kept in fewer bits than what is trained, see `Received`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.bits import from_bits, storage_dtype, to_bits

__all__ = ["Received", "Remat", "Stage", "scan_layers", "with_remat"]

Remat = Literal["none", "dots", "full"]
"""What a layer keeps for the backward pass: all it computed, its matrix products, or its input alone."""

PyTree = object
Stage = Callable[..., jax.Array]
"""(x, slices of what is trained, slices of what is frozen, what all turns share) -> x of the same shape and dtype."""


class Received(NamedTuple):
    """What is trained, and what gets its gradients.

    JAX gives a gradient the dtype of what it is of. Float32 masters that a layer rounds to bfloat16 have gradients that
    are bfloat16 numbers, and of all layers they would take twice the bytes that they need. Differentiate with respect
    to `receivers` instead.

    Attributes:
      values: a pytree of arrays.
      receivers: the same with arrays of the same shapes, in the dtypes of the gradients; their values are not read.
    """

    values: PyTree
    receivers: PyTree


def scan_layers(
    stages: Sequence[Stage],
    x: jax.Array,
    trained: PyTree,
    frozen: PyTree,
    shared: PyTree,
    *,
    remat: Remat,
    remat_layers: int = 1,
) -> jax.Array:
    """turn(... turn(x)), with gradients to x and `trained`; a turn is stages[-1](... stages[0](x)).

    Args:
      trained, frozen: pytrees of arrays [count, ...], a slice a turn. With "full", the whole of `trained` may be
        `Received`.
      shared: given to every turn.
      remat: see `Remat`.
      remat_layers: with "full", keep the input of every n-th turn, n the largest divisor of count that is no more than
        this. 1 computes each turn twice, more three times.
    """

    def turn(x: jax.Array, own: PyTree, rest: PyTree, shared: PyTree) -> jax.Array:
        for stage in stages:
            x = stage(x, own, rest, shared)
        return x

    if remat == "full":
        values, receivers = trained if isinstance(trained, Received) else (trained, None)
        count = len(jax.tree.leaves((values, frozen))[0])
        group = max(n for n in range(1, min(remat_layers, count) + 1) if count % n == 0)
        given = _Given(values, frozen, shared, receivers)
        return _scan(tuple(stages) if group > 1 else (turn,), group, x, given)

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


class _Given(NamedTuple):
    """Of the arguments of `scan_layers`, those that are arrays."""

    trained: PyTree
    frozen: PyTree
    shared: PyTree
    receivers: PyTree

    def at(self, layer: jax.Array) -> tuple[PyTree, PyTree]:
        """One layer's; sliced where they are used, for a group's weights must not be copied together."""
        arrays = self.trained, self.frozen
        return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, layer, keepdims=False), arrays)

    def groups(self, size: int) -> jax.Array:
        """Indices of the layers, [count / size, size]."""
        count = len(jax.tree.leaves((self.trained, self.frozen))[0])
        return jnp.arange(count, dtype=jnp.int32).reshape(-1, size)


_Stages = tuple[Stage, ...]
_Grads = tuple[jax.Array, PyTree]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(stages: _Stages, group: int, x: jax.Array, given: _Given) -> jax.Array:
    return _forward(stages, group, x, given)[0]


def _forward(stages: _Stages, group: int, x: jax.Array, given: _Given) -> tuple[jax.Array, tuple[jax.Array, _Given]]:
    def one_group(x: jax.Array, layers: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _run(stages, layers, x, given)[0], _bits(x)

    x, inputs = lax.scan(one_group, x, given.groups(group))
    return x, (inputs, given)


def _run(stages: _Stages, layers: jax.Array, x: jax.Array, given: _Given) -> tuple[jax.Array, jax.Array]:
    """(x after some layers, bits of the input of each of their stages [layers, stages, ...])."""

    def one(x: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A branch is a border: XLA would else slice all weights of a layer ahead of its first product.
        branches = [lambda x, stage=stage: stage(x, *given.at(layer), given.shared) for stage in stages]
        return lax.scan(lambda x, i: (lax.switch(i, branches, x), _bits(x)), x, jnp.arange(len(stages)))

    return lax.scan(one, x, layers)


def _backward(
    stages: _Stages, group: int, saved: tuple[jax.Array, _Given], grad: jax.Array
) -> tuple[jax.Array, _Given]:
    inputs, given = saved
    dtypes = jax.tree.map(lambda array: array.dtype, given.trained if given.receivers is None else given.receivers)

    def one_group(grad: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> _Grads:
        layers, bits = inputs
        is_first = group == len(stages) == 1
        every = bits if is_first else _run(stages, layers, from_bits(bits), given)[1]
        return lax.scan(partial(one, every.reshape(-1, *bits.shape)), grad, (layers, jnp.arange(group)), reverse=True)

    def one(every: jax.Array, grad: jax.Array, at: tuple[jax.Array, jax.Array]) -> _Grads:
        layer, place = at
        zeros = jax.tree.map(lambda array: jnp.zeros(array.shape[1:], array.dtype), given.trained)

        def pull(stage: Stage, index: int, grads: _Grads) -> _Grads:
            grad, total = grads
            x = from_bits(lax.dynamic_index_in_dim(every, place * len(stages) + index, keepdims=False))
            own, rest = given.at(layer)
            grad, part = jax.vjp(lambda x, own: stage(x, own, rest, given.shared), x, own)[1](grad)
            return grad, jax.tree.map(jnp.add, total, part)

        branches = [partial(pull, stage, index) for index, stage in enumerate(stages)]
        each = jnp.arange(len(stages))
        (grad, total), _ = lax.scan(
            lambda grads, i: (lax.switch(i, branches, grads), None), (grad, zeros), each, reverse=True
        )
        return grad, jax.tree.map(lambda g, dtype: to_bits(g, storage_dtype(dtype)), total, dtypes)

    grad, grads = lax.scan(one_group, grad, (given.groups(group), inputs), reverse=True)
    grads = jax.tree.map(lambda g: from_bits(g.reshape(-1, *g.shape[2:])), grads)
    return grad, _Given(*((grads, None, None, None) if given.receivers is None else (None, None, None, grads)))


_scan.defvjp(_forward, _backward)


def _bits(x: jax.Array) -> jax.Array:
    return to_bits(x, storage_dtype(x.dtype))
