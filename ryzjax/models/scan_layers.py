"""scan_layers: a scan over stacked layers that controls how much is kept for the backward pass.

Like JAX's scan over `jax.checkpoint`, it keeps the inputs of layers. It differs in four ways, all measured in
docs/log.md:

- It keeps inputs as their bits. XLA for CPU would otherwise convert the whole bfloat16 stack to float32 before the
  backward loop.
- It can keep the input of every n-th layer only.
- In that case it runs a layer in stages, attention and MLP, so that the temporaries of one are freed before those of
  the other are allocated.
- It can keep the gradients of the layers in fewer bits than the trained arrays (`Received`).

Frozen arrays may be in the host's memory (`sharding.host_memory`). The slices of an iteration are then copied to the
device while the previous iteration is computed. The loops carry the slices, so a copy does not depend on that
computation and XLA is free to run both at once. The device holds the slices of two iterations, for any number of
layers.

An iteration of the scan runs all stages once, on one slice of each stacked array. For most models that is one layer.
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
"""What a layer keeps for the backward pass: all that it computed ("none"), its matrix products, or only its input."""

PyTree = object
Stage = Callable[..., jax.Array]
"""(x, slices of the trained arrays, slices of the frozen arrays, shared arguments) -> x of the same shape and dtype."""


class Received(NamedTuple):
    """Trained arrays, and the arrays that receive their gradients.

    JAX gives a gradient the dtype of the differentiated array. If a layer rounds float32 masters to bfloat16, their
    gradients are bfloat16 numbers, and storing them as float32 for all layers takes twice the bytes that they need.
    Differentiate with respect to `receivers` instead.

    Attributes:
      values: A pytree of arrays.
      receivers: A pytree of the same structure and shapes, in the dtypes of the gradients. Its values are not read.
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
    """Applies the stages in order, once for each slice of the stacked arrays. Gradients flow to `x` and `trained`.

    Args:
      stages: The functions that make up one iteration.
      x: The input of the first iteration.
      trained, frozen: Pytrees of arrays [count, ...]. An iteration gets one slice of each. With remat "full",
        `trained` as a whole may be `Received`.
      shared: A pytree that every iteration gets.
      remat: What an iteration keeps for the backward pass.
      remat_layers: With remat "full", the input of every n-th iteration is kept, where n is the largest divisor of
        count that is at most this number. With 1, each iteration is computed twice; otherwise three times.

    Returns:
      The output of the last iteration.
    """

    def iteration(x: jax.Array, own: PyTree, rest: PyTree, shared: PyTree) -> jax.Array:
        for stage in stages:
            x = stage(x, own, rest, shared)
        return x

    if remat == "full":
        values, receivers = trained if isinstance(trained, Received) else (trained, None)
        count = len(jax.tree.leaves((values, frozen))[0])
        group = max(n for n in range(1, min(remat_layers, count) + 1) if count % n == 0)
        given = _Given(values, frozen, shared, receivers)
        return _scan(tuple(stages) if group > 1 else (iteration,), group, x, given)

    def body(x: jax.Array, slices: tuple[PyTree, PyTree]) -> tuple[jax.Array, None]:
        own, rest = slices
        return iteration(x, own, to_device(rest), shared), None

    return lax.scan(with_remat(body, remat), x, (trained, frozen))[0]


def with_remat(fn: Callable, remat: Remat) -> Callable:
    """Wraps `fn` in `jax.checkpoint` with the policy for `remat`."""
    if remat == "none":
        return fn
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat == "full" else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(fn, policy=policy)


_Fetched = tuple[jax.Array, ...]


class _Given(NamedTuple):
    """The arguments of `scan_layers` that are arrays."""

    trained: PyTree
    frozen: PyTree
    shared: PyTree
    receivers: PyTree

    def fetch(self, layer: jax.Array) -> _Fetched:
        """Starts to copy one layer's slices of the frozen arrays in the host's memory to the device."""
        arrays = [array for array in jax.tree.leaves(self.frozen) if is_on_host(array)]
        return tuple(to_device(_at(array, layer)) for array in arrays)  # pyright: ignore[reportReturnType]

    def at(self, layer: jax.Array, fetched: _Fetched) -> tuple[PyTree, PyTree]:
        """Returns one layer's slices, taken where they are used, so that a group's weights are not copied at once."""
        there = iter(fetched)
        rest = jax.tree.map(lambda array: next(there) if is_on_host(array) else _at(array, layer), self.frozen)
        return jax.tree.map(lambda array: _at(array, layer), self.trained), rest

    def groups(self, size: int) -> jax.Array:
        """Returns the indices of the layers, [count / size, size]."""
        count = len(jax.tree.leaves((self.trained, self.frozen))[0])
        return jnp.arange(count, dtype=jnp.int32).reshape(-1, size)


_Stages = tuple[Stage, ...]
_Grads = tuple[jax.Array, PyTree]
_State = tuple[jax.Array, _Fetched]
"""(x or its gradient, the slices fetched for the next layer)."""


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
    """Runs some layers, and fetches the slices of the next layer after each.

    Args:
      layers: The indices of the layers.
      last: The largest index to fetch: the layer at which the backward pass starts, or the last one.

    Returns:
      (x, the slices fetched last), and the bits of the input of each stage [layers, stages, ...].
    """

    def one(state: _State, layer: jax.Array) -> tuple[_State, jax.Array]:
        x, fetched = state
        upcoming = given.fetch(jnp.minimum(layer + 1, last))
        # XLA moves no code across a branch; without one, it would slice all weights of a layer before its first use.
        branches = [lambda x, stage=stage: stage(x, *given.at(layer, fetched), given.shared) for stage in stages]
        x, inputs = lax.scan(lambda x, i: (lax.switch(i, branches, x), _bits(x)), x, jnp.arange(len(stages)))
        return (x, upcoming), inputs

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
        # After the first layer of a group comes the first layer of the previous group, whose inputs are computed first.
        before = jnp.maximum(jnp.concatenate([layers[:1] - group, layers[:-1]]), 0)
        every = every.reshape(-1, *bits.shape)
        return lax.scan(partial(one, every), (grad, fetched), (layers, before, jnp.arange(group)), reverse=True)

    def one(every: jax.Array, state: _State, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_State, PyTree]:
        (grad, fetched), (layer, before, place) = state, at
        upcoming = given.fetch(before)
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
        return (grad, upcoming), grads

    (grad, _), grads = lax.scan(one_group, (grad, given.fetch(groups[-1, 0])), (groups, inputs), reverse=True)
    grads = jax.tree.map(lambda g: from_bits(g.reshape(-1, *g.shape[2:])), grads)
    return grad, _Given(*((grads, None, None, None) if given.receivers is None else (None, None, None, grads)))


_scan.defvjp(_forward, _backward)


def _at(array: jax.Array, layer: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, layer, keepdims=False)


def _bits(x: jax.Array) -> jax.Array:
    return to_bits(x, storage_dtype(x.dtype))
