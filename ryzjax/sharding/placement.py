"""Placement: a layout on real devices. It turns logical axes into `PartitionSpec`s."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from ryzjax.batch import KVCache
from ryzjax.errors import LayoutError
from ryzjax.sharding.layout import Layout

__all__ = ["Placement"]

_log = logging.getLogger(__name__)

Axes = tuple[str | None, ...]
Out = TypeVar("Out")


class AttentionSpecs(NamedTuple):
    """PartitionSpecs of q, of k and v, of the cache, of one value for each query head, and of everything else."""

    heads: PartitionSpec
    kv_heads: PartitionSpec
    cache: KVCache
    per_head: PartitionSpec
    replicated: PartitionSpec


class Placement:
    """A resolved layout and its mesh.

    A mesh axis of the layout is built from axes of prime size: `tensor` over 8 devices becomes `tensor_0`, `tensor_1`
    and `tensor_2` of size 2. A size that does not divide over all devices is split over the largest leading part that
    it does divide over, and replicated over the rest. 28 heads over 8 devices are therefore split in 4 parts.

    Args:
      layout: mesh axes and rules. Sizes of -1 are resolved with the number of `devices`.
      devices: the devices to use; by default all devices of this process. A layout of fixed size uses the first ones.
    """

    def __init__(self, layout: Layout, devices: Sequence[object] | None = None):
        devices = list(jax.devices() if devices is None else devices)
        self.layout = layout.resolve(len(devices))
        self._parts: dict[str, dict[str, int]] = {axis: _parts(axis, size) for axis, size in self.layout.mesh.items()}
        sizes = {name: size for parts in self._parts.values() for name, size in parts.items()}
        grid = np.array(devices[: math.prod(sizes.values())]).reshape(tuple(sizes.values()))
        self.mesh = Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
        self._told: set[tuple[str, int]] = set()

    @property
    def num_devices(self) -> int:
        """The number of devices of the mesh."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices: "cpu" or "gpu"."""
        return self.mesh.devices.flat[0].platform

    def axis_size(self, logical: str) -> int:
        """Returns the number of devices over which a logical axis may be split; 1 if no rule names it."""
        axis = self.layout.rules.get(logical)
        return self.layout.mesh[axis] if axis else 1

    def split(self, logical: str, count: int) -> int:
        """Returns the number of parts that `count` items along a logical axis are split into."""
        return math.prod(self.mesh.shape[name] for name in self.mesh_axes(logical, count))

    def mesh_axes(self, logical: str, count: int) -> tuple[str, ...]:
        """Returns the leading axes of `mesh` that divide `count` items along a logical axis."""
        axis = self.layout.rules.get(logical)
        names: list[str] = []
        parts = 1
        for name, size in self._parts[axis].items() if axis else ():
            if size == 1:
                continue
            if count % (parts * size):
                self._tell(logical, count, parts, axis)
                break
            parts *= size
            names.append(name)
        return tuple(names)

    def _tell(self, logical: str, count: int, parts: int, axis: str | None) -> None:
        if (logical, count) in self._told:
            return
        self._told.add((logical, count))
        _log.info(
            "layout %s: %s=%d is split over %d of the %d devices of mesh axis %s and repeated over the rest",
            self.layout.name,
            logical,
            count,
            parts,
            self.axis_size(logical),
            axis,
        )

    def query_heads_unit(self, num_heads: int, num_kv_heads: int) -> int:
        """Returns the query heads that must stay together, so that each device has the KV heads of its query heads.

        It is 1 if every device has one KV head, or if KV heads are split into as many parts as query heads. Otherwise
        it is a whole group.
        """
        kv_split = self.split("kv_heads", num_kv_heads)
        if kv_split == num_kv_heads or kv_split == self.split("heads", num_heads):
            return 1
        return num_heads // num_kv_heads

    def spec(self, axes: Axes, shape: Sequence[int], units: Sequence[int] | None = None) -> PartitionSpec:
        """Returns the PartitionSpec of an array.

        Args:
          axes: a logical axis or None for each dimension.
          shape: the array's shape.
          units: the indivisible run of each dimension, such as head_dim for fused heads; by default 1.

        Raises:
          LayoutError: two dimensions would be split over the same mesh axis.
        """
        entries: list[str | tuple[str, ...] | None] = []
        taken: set[str] = set()
        for i, (logical, size) in enumerate(zip(axes, shape, strict=True)):
            names = self.mesh_axes(logical, size // (units[i] if units else 1)) if logical else ()
            if taken.intersection(names):
                raise LayoutError(
                    f"layout {self.layout.name!r}: axes {axes} put mesh axis {self.layout.rules[logical or '']!r} on "
                    f"two dimensions of one array; give {logical!r} another mesh axis or none"
                )
            taken.update(names)
            entries.append(names[0] if len(names) == 1 else names or None)
        return PartitionSpec(*entries)

    def sharding(self, axes: Axes, shape: Sequence[int], units: Sequence[int] | None = None) -> NamedSharding:
        """Returns `spec` as a NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, units))

    def stacked(self, one: Sharding) -> NamedSharding:
        """Returns the sharding of a stack [count, ...] of arrays that have the sharding `one` on this mesh."""
        assert isinstance(one, NamedSharding)
        return NamedSharding(self.mesh, PartitionSpec(None, *one.spec), memory_kind=one.memory_kind)

    def low_rank(self, matrix: Sharding) -> tuple[NamedSharding, NamedSharding, NamedSharding]:
        """Returns the shardings of A [count, r, K], B [count, N, r] and magnitude [count, N] for matrices [N, K]."""
        assert isinstance(matrix, NamedSharding)
        rows, columns = (*matrix.spec, None, None)[:2]
        specs = PartitionSpec(None, None, columns), PartitionSpec(None, rows, None), PartitionSpec(None, rows)
        a, b, magnitude = (NamedSharding(self.mesh, spec) for spec in specs)
        return a, b, magnitude

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, x: jax.Array, *axes: str | None, units: Sequence[int] | None = None) -> jax.Array:
        """Constrains the sharding of an activation inside jit. `units` is as in `spec`."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape, units))

    def cache_specs(self, cache: KVCache) -> KVCache:
        """Returns a PartitionSpec for each array of a cache. All are split only over their KV heads."""

        def spec(array: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
            # Scales without pages are [layers, kv_heads]. All others start with [layers, pages, kv_heads].
            axes = (None, "kv_heads") if array.ndim == 2 else (None, None, "kv_heads", *(None,) * (array.ndim - 3))
            return self.spec(axes, array.shape)

        return jax.tree.map(spec, cache)

    def constrain_cache(self, cache: KVCache) -> KVCache:
        """Constrains the sharding of a cache inside jit."""

        def pin(array: jax.Array, spec: PartitionSpec) -> jax.Array:
            return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

        return jax.tree.map(pin, cache, self.cache_specs(cache))

    def attention_specs(self, num_heads: int, num_kv_heads: int, cache: KVCache) -> AttentionSpecs:
        """Returns the specs of an attention call. Heads are split; tokens and pages are whole on every device."""
        unit = self.query_heads_unit(num_heads, num_kv_heads)
        (heads,) = self.spec(("heads",), (num_heads,), (unit,))
        (kv_heads,) = self.spec(("kv_heads",), (num_kv_heads,))
        return AttentionSpecs(
            heads=PartitionSpec(None, heads, None),
            kv_heads=PartitionSpec(None, kv_heads, None),
            cache=self.cache_specs(cache),
            per_head=PartitionSpec(heads),
            replicated=PartitionSpec(),
        )

    def per_shard(
        self,
        fn: Callable[..., Out],
        in_specs: Sequence[object],
        out_specs: PartitionSpec | tuple,
    ) -> Callable[..., Out]:
        """Returns `fn` wrapped in `jax.shard_map`, or `fn` itself with one device.

        Args:
          fn: the function of one device's shards.
          in_specs: a pytree of PartitionSpecs for each argument.
          out_specs: a pytree of PartitionSpecs for the results.
        """
        if self.num_devices == 1:
            return fn
        return jax.shard_map(fn, mesh=self.mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)


def _parts(axis: str, size: int) -> dict[str, int]:
    """Returns the mesh axes of prime size that make up an axis of the layout, smallest first."""
    primes: list[int] = []
    rest, divisor = size, 2
    while rest > 1:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    return {axis: size} if len(primes) < 2 else {f"{axis}_{i}": prime for i, prime in enumerate(primes)}
