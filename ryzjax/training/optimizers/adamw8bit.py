"""Adam with 8-bit moments (Dettmers et al., arXiv:2110.02861): 2.03 bytes of state per parameter instead of 8.

The paper stores the second moment itself. Here its square root is stored, in the same unsigned code, which then covers
over 14 decades of the second moment instead of 7. The square root is also what the update divides by: over blocks whose
second moments are log-normal with a spread of e^4, the root mean square error of the divisor is 4% instead of 29%. A
second moment above zero never becomes zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ryzjax.training.optimizers.block_code import BlockCoded, decode, encode, zeros_coded

__all__ = ["MIN_CODED_ELEMENTS", "ScaleByAdam8bitState", "scale_by_adam_8bit"]

MIN_CODED_ELEMENTS = 4096
"""Smaller leaves keep their moments in float32, as in the paper."""

_WHOLE_ELEMENTS = 1 << 18
"""A larger leaf with three axes or more is updated one index of its first axis (one layer) at a time, so that float32
moments exist for only one layer at a time."""

Moment = jax.Array | BlockCoded
Leaf = tuple[jax.Array, Moment, Moment]
"""Arrays of one parameter: its gradient or direction, and its two moments."""


class ScaleByAdam8bitState(NamedTuple):
    """State of `scale_by_adam_8bit`. `mu` and `root_nu` hold a `BlockCoded` or a float32 array for each parameter."""

    count: jax.Array
    mu: optax.Updates
    root_nu: optax.Updates


def scale_by_adam_8bit(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Returns Adam's direction as `optax.scale_by_adam` computes it, from 8-bit states.

    Args:
      b1: Decay rate of the first moment.
      b2: Decay rate of the second moment.
      eps: Added to the root of the second moment.
    """

    def init(params: optax.Params) -> ScaleByAdam8bitState:
        def moment(p: jax.Array) -> Moment:
            return jnp.zeros(p.shape, jnp.float32) if p.size < MIN_CODED_ELEMENTS else zeros_coded(p.shape)

        mu, root_nu = jax.tree.map(moment, params), jax.tree.map(moment, params)
        return ScaleByAdam8bitState(count=jnp.zeros((), jnp.int32), mu=mu, root_nu=root_nu)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        assert isinstance(state, ScaleByAdam8bitState)
        count = state.count + 1
        steps = count.astype(jnp.float32)
        correct1, correct2 = 1 - jnp.float32(b1) ** steps, 1 - jnp.float32(b2) ** steps

        def step(g: jax.Array, mu: Moment, root_nu: Moment) -> Leaf:
            gradient = g.astype(jnp.float32)
            m = b1 * _floats(mu, signed=True) + (1 - b1) * gradient
            v = b2 * jnp.square(_floats(root_nu, signed=False)) + (1 - b2) * jnp.square(gradient)
            root = jnp.sqrt(v)
            direction = (m / correct1) / (root / jnp.sqrt(correct2) + eps)
            return direction.astype(g.dtype), _like(mu, m, signed=True), _like(root_nu, root, signed=False)

        leaves, treedef = jax.tree.flatten(updates)
        moments = zip(leaves, treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.root_nu), strict=True)
        done = [_by_layer(step, *leaf) if _is_large(leaf[0]) else step(*leaf) for leaf in moments]
        directions, mu, root_nu = (treedef.unflatten([leaf[i] for leaf in done]) for i in range(3))
        return directions, ScaleByAdam8bitState(count=count, mu=mu, root_nu=root_nu)

    return optax.GradientTransformation(init, update)


def _is_large(g: jax.Array) -> bool:
    return g.ndim > 2 and math.prod(g.shape) > _WHOLE_ELEMENTS


def _by_layer(step: Callable[[jax.Array, Moment, Moment], Leaf], g: jax.Array, mu: Moment, root_nu: Moment) -> Leaf:
    """Runs `step` on each index of the first axis. New moments replace the old ones in place if XLA allows it."""

    def body(
        moments: tuple[Moment, Moment], at: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Moment, Moment], jax.Array]:
        layer, gradient = at
        one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), moments)
        direction, *new = step(gradient, *one)
        replaced = jax.tree.map(lambda x, n: jax.lax.dynamic_update_index_in_dim(x, n, layer, 0), moments, tuple(new))
        return replaced, direction

    (mu, root_nu), directions = jax.lax.scan(body, (mu, root_nu), (jnp.arange(g.shape[0]), g))
    return directions, mu, root_nu


def _floats(moment: Moment, *, signed: bool) -> jax.Array:
    return decode(moment, signed=signed) if isinstance(moment, BlockCoded) else moment


def _like(old: Moment, new: jax.Array, *, signed: bool) -> Moment:
    return encode(new, signed=signed, keep_positive=not signed) if isinstance(old, BlockCoded) else new
