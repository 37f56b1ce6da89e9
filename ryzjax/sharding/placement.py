"""Placement: a layout on real devices. The one place where logical axes become `PartitionSpec`s."""

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
    """PartitionSpecs of q, of k and v, of the cache, of one value a query head, and of everything else."""

    heads: PartitionSpec
    kv_heads: PartitionSpec
    cache: KVCache
    per_head: PartitionSpec
    replicated: PartitionSpec


class Placement:
    """A resolved layout and its mesh.

    A mesh axis of the layout is built from axes of prime size (`tensor` over 8 devices: `tensor_0`, `tensor_1`,
    `tensor_2` of 2 each), so that a size that does not divide over all its devices is split over the largest
    leading part that it does divide over, and repeated over the rest: 28 heads over 8 devices are split 4 ways.

    Args:
      layout: mesh axes and rules; -1 sizes are resolved against `devices`.
      devices: the devices to use, by default all of this process. A layout of fixed size takes the first ones.
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
        """Devices of the mesh."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Of the mesh's devices: "cpu", "gpu"."""
        return self.mesh.devices.flat[0].platform

    def axis_size(self, logical: str) -> int:
        """Devices along which a logical axis may be split (1 where no rule names it)."""
        axis = self.layout.rules.get(logical)
        return self.layout.mesh[axis] if axis else 1

    def split(self, logical: str, count: int) -> int:
        """Parts into which `count` things along a logical axis are split."""
        return math.prod(self.mesh.shape[name] for name in self.mesh_axes(logical, count))

    def mesh_axes(self, logical: str, count: int) -> tuple[str, ...]:
        """The axes of `mesh` over which `count` things along a logical axis are split: the leading ones that divide."""
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
        """Query heads that must stay on one device, so that each device has the KV heads its query heads read.

        1 where every device has one KV head, or as many KV heads as query heads are split into; else a whole group.
        """
        kv_split = self.split("kv_heads", num_kv_heads)
        if kv_split == num_kv_heads or kv_split == self.split("heads", num_heads):
            return 1
        return num_heads // num_kv_heads

    def spec(self, axes: Axes, shape: Sequence[int], units: Sequence[int] | None = None) -> PartitionSpec:
        """The PartitionSpec of an array.

        Args:
          axes: a logical axis (or None) per dimension.
          shape: the array's shape.
          units: indivisible run per dimension (head_dim for a fused heads dimension); 1 by default.

        Raises:
          LayoutError: two dimensions want one mesh axis.
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
        """`spec` as a NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, units))

    def stacked(self, one: Sharding) -> NamedSharding:
        """The sharding of a stack [count, ...] of arrays that are each split, and lie, as `one` on this mesh."""
        assert isinstance(one, NamedSharding)
        return NamedSharding(self.mesh, PartitionSpec(None, *one.spec), memory_kind=one.memory_kind)

    def low_rank(self, matrix: Sharding) -> tuple[NamedSharding, NamedSharding, NamedSharding]:
        """Shardings of stacked A [count, r, K], B [count, N, r] and magnitude [count, N] beside matrices [N, K]."""
        assert isinstance(matrix, NamedSharding)
        rows, columns = (*matrix.spec, None, None)[:2]
        specs = PartitionSpec(None, None, columns), PartitionSpec(None, rows, None), PartitionSpec(None, rows)
        a, b, magnitude = (NamedSharding(self.mesh, spec) for spec in specs)
        return a, b, magnitude

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, x: jax.Array, *axes: str | None, units: Sequence[int] | None = None) -> jax.Array:
        """Pin an activation's sharding inside jit; `units` as in `spec`."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape, units))

    def cache_specs(self, cache: KVCache) -> KVCache:
        """A PartitionSpec for each array of a cache, by its rank: all are split over their KV heads alone."""

        def spec(array: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
            # Scales without pages are [layers, kv_heads]; all else begins with [layers, pages, kv_heads].
            axes = (None, "kv_heads") if array.ndim == 2 else (None, None, "kv_heads", *(None,) * (array.ndim - 3))
            return self.spec(axes, array.shape)

        return jax.tree.map(spec, cache)

    def constrain_cache(self, cache: KVCache) -> KVCache:
        """Pin a cache's sharding inside jit."""

        def pin(array: jax.Array, spec: PartitionSpec) -> jax.Array:
            return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

        return jax.tree.map(pin, cache, self.cache_specs(cache))

    def attention_specs(self, num_heads: int, num_kv_heads: int, cache: KVCache) -> AttentionSpecs:
        """Specs of one attention call: heads are split, tokens and pages are whole on every device."""
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
        """`fn` run on each device's own shard (`jax.shard_map`); `fn` itself where there is one device.

        Args:
          in_specs: a pytree of PartitionSpecs an argument.
        """
        if self.num_devices == 1:
            return fn
        return jax.shard_map(fn, mesh=self.mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)


def _parts(axis: str, size: int) -> dict[str, int]:
    """Mesh axes of prime size that make up one of the layout, smallest first; itself where it is one already."""
    primes: list[int] = []
    rest, divisor = size, 2
    while rest > 1:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    return {axis: size} if len(primes) < 2 else {f"{axis}_{i}": prime for i, prime in enumerate(primes)}
