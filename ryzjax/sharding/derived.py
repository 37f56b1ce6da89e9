"""Shardings of arrays that belong to a sharded array, such as the optimizer states of a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["derived_sharding"]


def derived_sharding(sharding: NamedSharding, shape: Sequence[int], derived: Sequence[int]) -> NamedSharding:
    """Returns the sharding of an array with a value for each element, or each block of elements, of another array.

    Args:
      sharding: the sharding of the other array.
      shape: the shape of the other array.
      derived: the shape of the derived array. An axis that has the same length as the other array's, or a whole
        fraction of it (scales of blocks), is split in the same way if it divides. An array of another rank is
        replicated.
    """
    if len(shape) != len(derived):
        return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=sharding.memory_kind)
    spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))

    def entry(axes: str | Sequence[str] | None, size: int, part: int) -> str | Sequence[str] | None:
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        return axes if part and size % part == 0 and part % parts == 0 else None

    entries = [entry(*sizes) for sizes in zip(spec, shape, derived, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*entries), memory_kind=sharding.memory_kind)
