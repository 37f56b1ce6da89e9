"""Arrays that lie in the host's memory, pinned there, and come to the device a part at a time inside a program."""

from __future__ import annotations

import jax
from jax.sharding import Sharding

from ryzjax.errors import ConfigError
from ryzjax.sharding.placement import Placement

__all__ = ["check_host_memory", "has_host_memory", "host_sharding", "is_host_sharding", "is_on_host", "to_device"]

_PINNED = "pinned_host"

PyTree = object


def has_host_memory(placement: Placement) -> bool:
    """Whether every device can read pinned memory of the host."""
    return all(_PINNED in kinds for kinds in _memory_kinds(placement).values())


def check_host_memory(placement: Placement) -> None:
    """That every device can read pinned memory of the host.

    Raises:
      ConfigError: one cannot.
    """
    for device, kinds in _memory_kinds(placement).items():
        if _PINNED not in kinds:
            raise ConfigError(
                f"{device} has no {_PINNED} memory, only {', '.join(kinds) or 'none it names'}: weights cannot be kept "
                "on the host. Leave out offload='frozen', or run on a backend that has it (CUDA)"
            )


def _memory_kinds(placement: Placement) -> dict[str, list[str]]:
    """Device -> what it calls the memories it can read."""
    return {
        f"{device} ({device.platform})": [memory.kind for memory in device.addressable_memories()]
        for device in placement.mesh.devices.flat
    }


def host_sharding(sharding: Sharding) -> Sharding:
    """The same split, in pinned memory of the host."""
    return sharding.with_memory_kind(_PINNED)


def is_host_sharding(sharding: Sharding) -> bool:
    """Whether arrays of this sharding lie there."""
    return sharding.memory_kind == _PINNED


def is_on_host(array: jax.Array) -> bool:
    """Whether an array lies there; also one that is traced."""
    return jax.typeof(array).memory_space == jax.memory.Space.Host


def to_device(arrays: PyTree) -> PyTree:
    """The arrays of a pytree in the memory of the device; those that are there already as they are."""
    return jax.tree.map(
        lambda array: jax.device_put(array, jax.memory.Space.Device) if is_on_host(array) else array, arrays
    )
