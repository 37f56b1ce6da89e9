"""scan_layers: a scan over stacked layers that keeps as little for the backward pass as it is told to.

JAX's own scan over `jax.checkpoint` keeps each layer's input too. This one differs in four ways, all measured
(docs/log.md). Inputs are kept as their bits, because XLA for CPU would turn the whole stack of bfloat16 into float32
ahead of the backward loop. It can keep the input of every n-th layer alone. Then it goes through a layer by its stages,
attention and MLP, so that the temporaries of one are gone when the other's begin. And gradients of the layers can be
kept in fewer bits than what is trained, see `Received`.

What is frozen may lie in the host's memory (`sharding.host_memory`). Then a turn's slices come to the device whole,
while the turn before is computed: the loops carry them, so a copy depends on nothing that is computed beside it, and
XLA is free to run both at once. Slices of two turns are on the device, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.bits import from_bits, storage_dtype, to_bits
from ryzjax.sharding.host_memory import is_on_host, to_device

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
        own, rest = slices
        return turn(x, own, to_device(rest), shared), None

    return lax.scan(with_remat(body, remat), x, (trained, frozen))[0]


def with_remat(fn: Callable, remat: Remat) -> Callable:
    """`fn` under the policy of `jax.checkpoint` that does this."""
    if remat == "none":
        return fn
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat == "full" else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(fn, policy=policy)


_Fetched = tuple[jax.Array, ...]


class _Given(NamedTuple):
    """Of the arguments of `scan_layers`, those that are arrays."""

    trained: PyTree
    frozen: PyTree
    shared: PyTree
    receivers: PyTree

    def fetch(self, layer: jax.Array) -> _Fetched:
        """One layer's slices of what is frozen in the host's memory, on their way to the device."""
        arrays = [array for array in jax.tree.leaves(self.frozen) if is_on_host(array)]
        return tuple(to_device(_at(array, layer)) for array in arrays)  # pyright: ignore[reportReturnType]

    def at(self, layer: jax.Array, fetched: _Fetched) -> tuple[PyTree, PyTree]:
        """One layer's; sliced where they are used, for a group's weights must not be copied together."""
        there = iter(fetched)
        rest = jax.tree.map(lambda array: next(there) if is_on_host(array) else _at(array, layer), self.frozen)
        return jax.tree.map(lambda array: _at(array, layer), self.trained), rest

    def groups(self, size: int) -> jax.Array:
        """Indices of the layers, [count / size, size]."""
        count = len(jax.tree.leaves((self.trained, self.frozen))[0])
        return jnp.arange(count, dtype=jnp.int32).reshape(-1, size)


_Stages = tuple[Stage, ...]
_Grads = tuple[jax.Array, PyTree]
_State = tuple[jax.Array, _Fetched]
"""(x or its gradient, what was fetched for the next layer)."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(stages: _Stages, group: int, x: jax.Array, given: _Given) -> jax.Array:
    return _forward(stages, group, x, given)[0]


def _forward(stages: _Stages, group: int, x: jax.Array, given: _Given) -> tuple[jax.Array, tuple[jax.Array, _Given]]:
    groups = given.groups(group)

    def one_group(state: _State, layers: jax.Array) -> tuple[_State, jax.Array]:
        return _run(stages, layers, groups[-1, -1], state, given)[0], _bits(state[0])

    (x, _), inputs = lax.scan(one_group, (x, given.fetch(groups[0, 0])), groups)
    return x, (inputs, given)


def _run(stages: _Stages, layers: jax.Array, last: jax.Array, state: _State, given: _Given) -> tuple[_State, jax.Array]:
    """((x after some layers, what is fetched next), bits of the input of each of their stages [layers, stages, ...]).

    Behind each layer the next is fetched, `last` at the most: where the backward pass begins, or nothing does.
    """

    def one(state: _State, layer: jax.Array) -> tuple[_State, jax.Array]:
        x, fetched = state
        coming = given.fetch(jnp.minimum(layer + 1, last))
        # A branch is a border: XLA would else slice all weights of a layer ahead of its first product.
        branches = [lambda x, stage=stage: stage(x, *given.at(layer, fetched), given.shared) for stage in stages]
        x, inputs = lax.scan(lambda x, i: (lax.switch(i, branches, x), _bits(x)), x, jnp.arange(len(stages)))
        return (x, coming), inputs

    return lax.scan(one, state, layers)


def _backward(
    stages: _Stages, group: int, saved: tuple[jax.Array, _Given], grad: jax.Array
) -> tuple[jax.Array, _Given]:
    inputs, given = saved
    dtypes = jax.tree.map(lambda array: array.dtype, given.trained if given.receivers is None else given.receivers)

    groups = given.groups(group)

    def one_group(state: _State, inputs: tuple[jax.Array, jax.Array]) -> tuple[_State, PyTree]:
        (grad, fetched), (layers, bits) = state, inputs
        every = bits
        if group > 1 or len(stages) > 1:
            (_, fetched), every = _run(stages, layers, layers[-1], (from_bits(bits), fetched), given)
        # Behind a group's first layer comes the first of the group before: its inputs are computed first.
        before = jnp.maximum(jnp.concatenate([layers[:1] - group, layers[:-1]]), 0)
        every = every.reshape(-1, *bits.shape)
        return lax.scan(partial(one, every), (grad, fetched), (layers, before, jnp.arange(group)), reverse=True)

    def one(every: jax.Array, state: _State, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_State, PyTree]:
        (grad, fetched), (layer, before, place) = state, at
        coming = given.fetch(before)
        zeros = jax.tree.map(lambda array: jnp.zeros(array.shape[1:], array.dtype), given.trained)

        def pull(stage: Stage, index: int, grads: _Grads) -> _Grads:
            grad, total = grads
            x = from_bits(lax.dynamic_index_in_dim(every, place * len(stages) + index, keepdims=False))
            own, rest = given.at(layer, fetched)
            grad, part = jax.vjp(lambda x, own: stage(x, own, rest, given.shared), x, own)[1](grad)
            return grad, jax.tree.map(jnp.add, total, part)

        branches = [partial(pull, stage, index) for index, stage in enumerate(stages)]
        each = jnp.arange(len(stages))
        (grad, total), _ = lax.scan(
            lambda grads, i: (lax.switch(i, branches, grads), None), (grad, zeros), each, reverse=True
        )
        grads = jax.tree.map(lambda g, dtype: to_bits(g, storage_dtype(dtype)), total, dtypes)
        return (grad, coming), grads

    (grad, _), grads = lax.scan(one_group, (grad, given.fetch(groups[-1, 0])), (groups, inputs), reverse=True)
    grads = jax.tree.map(lambda g: from_bits(g.reshape(-1, *g.shape[2:])), grads)
    return grad, _Given(*((grads, None, None, None) if given.receivers is None else (None, None, None, grads)))


_scan.defvjp(_forward, _backward)


def _at(array: jax.Array, layer: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, layer, keepdims=False)


def _bits(x: jax.Array) -> jax.Array:
    return to_bits(x, storage_dtype(x.dtype))
