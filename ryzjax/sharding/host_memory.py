"""Arrays in pinned host memory, which a program copies to the device one part at a time."""

from __future__ import annotations

import jax
from jax.sharding import Sharding

from ryzjax.errors import ConfigError
from ryzjax.sharding.placement import Placement

__all__ = ["check_host_memory", "has_host_memory", "host_sharding", "is_host_sharding", "is_on_host", "to_device"]

_PINNED = "pinned_host"

PyTree = object


def has_host_memory(placement: Placement) -> bool:
    """Returns whether every device can read pinned host memory."""
    return all(_PINNED in kinds for kinds in _memory_kinds(placement).values())


def check_host_memory(placement: Placement) -> None:
    """Checks that every device can read pinned host memory.

    Raises:
      ConfigError: a device cannot.
    """
    for device, kinds in _memory_kinds(placement).items():
        if _PINNED not in kinds:
            raise ConfigError(
                f"{device} has no {_PINNED} memory, only {', '.join(kinds) or 'none it names'}: weights cannot be kept "
                "in host memory. Leave out offload='frozen', or run on a backend that has it (CUDA)"
            )


def _memory_kinds(placement: Placement) -> dict[str, list[str]]:
    """Returns the names of the memories that each device can read."""
    return {
        f"{device} ({device.platform})": [memory.kind for memory in device.addressable_memories()]
        for device in placement.mesh.devices.flat
    }


def host_sharding(sharding: Sharding) -> Sharding:
    """Returns the same sharding in pinned host memory."""
    return sharding.with_memory_kind(_PINNED)


def is_host_sharding(sharding: Sharding) -> bool:
    """Returns whether arrays of this sharding are in pinned host memory."""
    return sharding.memory_kind == _PINNED


def is_on_host(array: jax.Array) -> bool:
    """Returns whether an array, also a traced one, is in host memory."""
    return jax.typeof(array).memory_space == jax.memory.Space.Host


def to_device(arrays: PyTree) -> PyTree:
    """Copies the arrays of a pytree that are in host memory to the device."""
    return jax.tree.map(
        lambda array: jax.device_put(array, jax.memory.Space.Device) if is_on_host(array) else array, arrays
    )
