"""Placement: a layout on real devices. The one place where logical axes become `PartitionSpec`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ryzjax.errors import LayoutError
from ryzjax.sharding.layout import Layout

__all__ = ["Placement"]

Axes = tuple[str | None, ...]
Out = TypeVar("Out")


class AttentionSpecs(NamedTuple):
    """PartitionSpecs of q, of k and v, of the cache, and of everything else (metadata)."""

    heads: PartitionSpec
    kv_heads: PartitionSpec
    cache: PartitionSpec
    replicated: PartitionSpec


class Placement:
    """A resolved layout and its mesh.

    Args:
      layout: mesh axes and rules; -1 sizes are resolved against `devices`.
      devices: the devices to use, by default all of this process. A layout of fixed size takes the first ones.
    """

    def __init__(self, layout: Layout, devices: Sequence[object] | None = None):
        devices = list(jax.devices() if devices is None else devices)
        self.layout = layout.resolve(len(devices))
        sizes = tuple(self.layout.mesh.values())
        grid = np.array(devices[: int(np.prod(sizes))]).reshape(sizes)
        self.mesh = Mesh(grid, tuple(self.layout.mesh), axis_types=(AxisType.Auto,) * len(sizes))

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.mesh.size

    def axis_size(self, logical: str) -> int:
        """Devices along which a logical axis is split (1 where no rule names it)."""
        axis = self.layout.rules.get(logical)
        return self.layout.mesh[axis] if axis else 1

    def kv_replication(self, num_kv_heads: int) -> int:
        """Copies of each KV head in the cache: more than 1 where the tensor axis is wider than the heads."""
        size = self.axis_size("kv_heads")
        if num_kv_heads % size == 0:
            return 1
        if size % num_kv_heads == 0:
            return size // num_kv_heads
        raise LayoutError(
            f"layout {self.layout.name!r}: kv_heads={num_kv_heads} neither divides nor is a multiple of the "
            f"{size} devices of mesh axis {self.layout.rules['kv_heads']!r}; use a size that does"
        )

    def spec(self, axes: Axes, shape: Sequence[int], units: Sequence[int] | None = None) -> PartitionSpec:
        """The PartitionSpec of an array.

        Args:
          axes: a logical axis (or None) per dimension.
          shape: the array's shape.
          units: indivisible run per dimension (head_dim for a fused heads dimension); 1 by default.

        Raises:
          LayoutError: two dimensions want one mesh axis, or a dimension does not divide.
        """
        entries: list[str | None] = []
        for i, (logical, size) in enumerate(zip(axes, shape, strict=True)):
            mesh_axis = self.layout.rules.get(logical) if logical else None
            count = size // (units[i] if units else 1)
            if mesh_axis is None or self.layout.mesh[mesh_axis] == 1:
                entries.append(None)
                continue
            devices = self.layout.mesh[mesh_axis]
            if logical == "kv_heads" and devices % count == 0 and count < devices:
                entries.append(None)  # fewer KV heads than devices: every device keeps them all
                continue
            if mesh_axis in entries:
                raise LayoutError(
                    f"layout {self.layout.name!r}: axes {axes} put mesh axis {mesh_axis!r} on two dimensions of one "
                    f"array; give {logical!r} another mesh axis or none"
                )
            if count % devices:
                raise LayoutError(
                    f"layout {self.layout.name!r}: {logical}={count} does not divide over the {devices} devices of "
                    f"mesh axis {mesh_axis!r}; use a size that divides {count}, or drop the rule for {logical!r}"
                )
            entries.append(mesh_axis)
        return PartitionSpec(*entries)

    def sharding(self, axes: Axes, shape: Sequence[int], units: Sequence[int] | None = None) -> NamedSharding:
        """`spec` as a NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape, units))

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Pin an activation's sharding inside jit."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))

    def attention_specs(self, num_heads: int, cache_shape: Sequence[int]) -> AttentionSpecs:
        """Specs of one attention call: heads are split, tokens and pages are whole on every device.

        Args:
          num_heads: query heads.
          cache_shape: [layers, pages, kv_heads, page_size, head_dim], KV heads already replicated as needed.
        """
        heads = self.spec((None, "heads", None), (1, num_heads, 1))
        pages = self.spec((None, None, "kv_heads", None, None), cache_shape)
        return AttentionSpecs(
            heads=heads, kv_heads=PartitionSpec(None, pages[2], None), cache=pages, replicated=PartitionSpec()
        )

    def per_shard(
        self, fn: Callable[..., Out], in_specs: Sequence[PartitionSpec], out_specs: PartitionSpec | tuple
    ) -> Callable[..., Out]:
        """`fn` run on each device's own shard (`jax.shard_map`); `fn` itself where there is one device."""
        if self.num_devices == 1:
            return fn
        return jax.shard_map(fn, mesh=self.mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
