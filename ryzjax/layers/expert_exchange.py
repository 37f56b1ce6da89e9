"""The two ways in which tokens reach their experts on other devices. The layout selects one of them.

all_gather   Every device that holds experts receives all tokens and computes the outputs of its own experts. The
             outputs are summed over the devices, and scattered if the tokens were split. Each token travels to all of
             the D devices that split the experts.
all_to_all   Each token travels only to the devices of its k experts and back, which is k/D of the bytes. Shapes are
             static and no token is dropped, so the exchange runs in rounds of a fixed capacity until all tokens are
             sent. With balanced experts one round is enough.

These functions run inside `shard_map`. Their shapes are those of one device.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

__all__ = ["CAPACITY_FACTOR", "ExpertAxes", "exchange_tokens", "gather_tokens"]

CAPACITY_FACTOR = 1.5
"""The rows that a device may send to another in a round, relative to the rows it sends if experts are balanced."""

Compute = Callable[[Float[Array, "T E"], Int[Array, " M"], Int[Array, " M"]], Float[Array, "M E"]]
"""Takes activations, the row of each computation, and its expert on this device. Returns float32 outputs."""


class ExpertAxes:
    """The mesh axes of one call, each possibly empty.

    Args:
      tokens: the axes that split the tokens.
      experts: the axes that split the experts.
      inner: the axes that split the inner size of each expert.
    """

    def __init__(self, *, tokens: tuple[str, ...], experts: tuple[str, ...], inner: tuple[str, ...]):
        self.experts = experts
        self.inner = inner
        self.shared = tuple(name for name in tokens if name in (*experts, *inner))
        self.summed = tuple(name for name in (*experts, *inner) if name not in self.shared)

    @property
    def can_exchange(self) -> bool:
        """Whether the axes that split the experts are also those that split the tokens, as all_to_all needs."""
        return bool(self.experts) and self.shared == self.experts

    def index(self, names: tuple[str, ...]) -> jax.Array | int:
        """Returns the position of this device along `names`."""
        return lax.axis_index(names) if names else 0


def gather_tokens(
    x: Float[Array, "T E"],
    weights: Float[Array, "T k"],
    ids: Int[Array, "T k"],
    compute: Compute,
    *,
    axes: ExpertAxes,
    num_local: int,
) -> Float[Array, "T E"]:
    """Gathers all tokens on all devices that hold experts. Returns the float32 outputs of this device's tokens.

    Args:
      x: the activations of this device's tokens.
      weights: the weight of each expert of a token.
      ids: the k experts of each token.
      compute: computes the outputs of this device's experts.
      axes: the mesh axes that split tokens and experts.
      num_local: the number of experts that this device holds.
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
    x: Float[Array, "T E"],
    weights: Float[Array, "T k"],
    ids: Int[Array, "T k"],
    compute: Compute,
    *,
    axes: ExpertAxes,
    num_local: int,
) -> Float[Array, "T E"]:
    """Sends each token to the devices of its experts and back, in rounds. Takes and returns what `gather_tokens` does.

    There is one row for each token and expert. A round moves `capacity` rows from each device to each device:

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

    def swap(a: Array) -> Array:
        return lax.all_to_all(a, axes.experts, split_axis=0, concat_axis=0, tiled=True)

    def one_round(number: int | Int[Array, ""], out: Float[Array, "M E"]) -> Float[Array, "M E"]:
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


def _weighted_sum(
    out: Float[Array, "T k E"], weights: Float[Array, "T k"], is_real: Bool[Array, "T k"]
) -> Float[Array, "T E"]:
    """Returns the weighted sum over the experts of each token. Rows that are not real may hold any number."""
    return jnp.sum(jnp.where(is_real[..., None], out * weights[..., None], 0), axis=1)
