"""How tokens meet their experts across devices, inside `shard_map`; the layout chooses.

all_gather   every device that holds experts gets all tokens, computes what is its own, and the sums are reduced
             (and scattered back where the tokens were split). Each token travels to all E devices.
all_to_all   each token travels to the devices of its k experts only, and back: k/E of the bytes. Shapes are
             static and no token is dropped, so the exchange runs in rounds of a fixed capacity until everything
             is sent; with balanced experts that is one round.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["CAPACITY_FACTOR", "ExpertAxes", "exchange_tokens", "gather_tokens"]

CAPACITY_FACTOR = 1.5
"""Rows a device may send another in a round, over what it would send if experts were chosen evenly."""

Compute = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x [T, E], row of x [R], local expert [R]) -> float32 [R, E], see `Experts`."""


class ExpertAxes:
    """Mesh axes (each maybe none) that split tokens, experts and the inside of an expert, in one call."""

    def __init__(self, *, tokens: tuple[str, ...], experts: tuple[str, ...], inner: tuple[str, ...]):
        self.experts = experts
        self.inner = inner
        self.shared = tuple(name for name in tokens if name in (*experts, *inner))
        self.summed = tuple(name for name in (*experts, *inner) if name not in self.shared)

    @property
    def can_exchange(self) -> bool:
        """Whether the devices that split the experts split the tokens too, and nothing else does."""
        return bool(self.experts) and self.shared == self.experts

    def index(self, names: tuple[str, ...]) -> jax.Array | int:
        """This device's position along `names`."""
        return lax.axis_index(names) if names else 0


def gather_tokens(
    x: jax.Array, weights: jax.Array, ids: jax.Array, compute: Compute, *, axes: ExpertAxes, num_local: int
) -> jax.Array:
    """All tokens to all devices that hold experts: float32 [T, E] of this device's own tokens.

    Args:
      x, weights, ids: [T, E], [T, k] and [T, k] of this device's tokens.
      num_local: experts this device holds.
    """
    if axes.shared:
        x, weights, ids = (lax.all_gather(a, axes.shared, tiled=True) for a in (x, weights, ids))
    num_tokens, top_k = ids.shape
    local = ids - axes.index(axes.experts) * num_local
    is_here = (local >= 0) & (local < num_local)
    source = jnp.arange(num_tokens * top_k) // top_k
    out = compute(x, source, jnp.where(is_here, local, num_local).reshape(-1)).reshape(num_tokens, top_k, -1)
    out = _weighted_sum(out, weights, is_here)
    if axes.summed:
        out = lax.psum(out, axes.summed)
    return lax.psum_scatter(out, axes.shared, tiled=True) if axes.shared else out


def exchange_tokens(
    x: jax.Array, weights: jax.Array, ids: jax.Array, compute: Compute, *, axes: ExpertAxes, num_local: int
) -> jax.Array:
    """Each token to the devices of its experts and back, in rounds; arguments and result as in `gather_tokens`.

    A round moves `capacity` rows (one a token and expert) from each device to each:

        rows by owner   [ to 0: a b c d e | to 1: f g | to 2: h i j ]      capacity 3
        round 0         [ a b c | f g . | h i j ]
        round 1         [ d e . | . . . | . . . ]
    """
    num_tokens, top_k = ids.shape
    num_devices = lax.axis_size(axes.experts)
    rows = num_tokens * top_k
    capacity = min(rows, max(1, int(-(-rows * CAPACITY_FACTOR // num_devices))))
    owner, expert = jnp.divmod(ids.reshape(-1), num_local)
    order = jnp.argsort(owner, stable=True)
    counts = jnp.zeros(num_devices, jnp.int32).at[owner].add(1)
    starts = jnp.cumsum(counts) - counts
    rounds = lax.pmax((jnp.max(counts) + capacity - 1) // capacity, axes.experts)

    def swap(a: jax.Array) -> jax.Array:
        return lax.all_to_all(a, axes.experts, split_axis=0, concat_axis=0, tiled=True)

    def one_round(number: jax.Array, out: jax.Array) -> jax.Array:
        place = number * capacity + jnp.arange(capacity)
        is_sent = (place < counts[:, None]).reshape(-1)
        row = order[jnp.minimum(starts[:, None] + place, rows - 1)].reshape(-1)
        received = swap(x[row // top_k])
        wanted = swap(jnp.where(is_sent, expert[row], num_local))
        done = compute(received, jnp.arange(received.shape[0]), wanted)
        if axes.inner:
            done = lax.psum(done, axes.inner)
        return out.at[jnp.where(is_sent, row, rows)].set(swap(done), mode="drop")

    out = lax.fori_loop(0, rounds, one_round, jnp.zeros((rows, x.shape[1]), jnp.float32))
    return _weighted_sum(out.reshape(num_tokens, top_k, -1), weights, jnp.ones_like(ids, bool))


def _weighted_sum(out: jax.Array, weights: jax.Array, is_real: jax.Array) -> jax.Array:
    """[T, k, E] -> [T, E]; rows that are not real may hold anything."""
    return jnp.sum(jnp.where(is_real[..., None], out * weights[..., None], 0), axis=1)
