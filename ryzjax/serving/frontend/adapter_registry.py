"""AdapterRegistry: the adapters that requests may name, in the memory of the host. Callers' threads share it."""

from __future__ import annotations

import itertools
import re
import threading
import time
from pathlib import Path

from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.errors import AdapterConflictError, AdapterNotFoundError, ConfigError
from ryzjax.lora import Adapter
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["AdapterRegistry"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
# Versions are unique in the process, so that data keyed by a version never belongs to another adapter.
_versions = itertools.count(1)


class AdapterRegistry:
    """The names of adapters and their current versions.

    Args:
      plan: The slots on the device that adapters are packed for.
      max_adapters: The largest number of names.
      reserved_name: The name of the model, which no adapter may have.
    """

    def __init__(self, plan: SlotPlan, *, max_adapters: int, reserved_name: str):
        self._plan = plan
        self._max_adapters = max_adapters
        self._reserved_name = reserved_name
        self._lock = threading.Lock()
        self._adapters: dict[str, ServedAdapter] = {}

    def register(
        self, name: str, source: Adapter | str | Path, *, replace: bool, root: str | None = None
    ) -> tuple[ServedAdapter, ServedAdapter | None]:
        """Reads, checks and packs an adapter, and registers it. A failure changes nothing.

        Args:
          name: The name by which requests choose the adapter.
          source: An adapter in memory, or a directory in the format of PEFT.
          replace: Whether to replace an adapter of the same name.
          root: A description of the adapter's origin for people; by default its directory or its name.

        Returns:
          The new version, and the version that it replaces, if any.

        Raises:
          ConfigError: The name is invalid or is the model's, or the adapter does not fit.
          CheckpointError: The directory holds no adapter, or a damaged one.
          AdapterConflictError: The name is taken and `replace` is not set, or there are `max_adapters` names.
        """
        if not _NAME.fullmatch(name) or ".." in name:
            raise ConfigError(
                f"lora_name {name[:200]!r} is not a name; expected up to 128 letters, digits and any of '._:/-'"
            )
        if name == self._reserved_name:
            raise ConfigError(f"lora_name {name!r} is the model's own name; give the adapter another")
        self._check_free(name, replace)  # before any work, and again after it
        adapter = source if isinstance(source, Adapter) else read_adapter(Path(source), self._plan.model)
        packed = self._plan.pack(adapter, name)
        served = ServedAdapter(
            name=name,
            version=next(_versions),
            rank=adapter.max_rank,
            root=root or (name if isinstance(source, Adapter) else str(source)),
            base_model=adapter.base_model,
            created_s=int(time.time()),
            values=packed.values,
            scales=packed.scales,
        )
        with self._lock:
            self._check_free(name, replace)
            replaced = self._adapters.get(name)
            self._adapters[name] = served
        return served, replaced

    def unregister(self, name: str) -> ServedAdapter:
        """Removes a name and returns its version.

        Raises:
          AdapterNotFoundError: No adapter has this name.
        """
        with self._lock:
            adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise AdapterNotFoundError(name)
        return adapter

    def get(self, name: str) -> ServedAdapter:
        """Returns the current version of a name.

        Raises:
          AdapterNotFoundError: No adapter has this name.
        """
        adapter = self._adapters.get(name)
        if adapter is None:
            raise AdapterNotFoundError(name)
        return adapter

    def all(self) -> tuple[ServedAdapter, ...]:
        """Returns the current versions, in the order in which their names were registered."""
        with self._lock:
            return tuple(self._adapters.values())

    def _check_free(self, name: str, replace: bool) -> None:
        if name in self._adapters:
            if not replace:
                raise AdapterConflictError(
                    f"the lora adapter {name!r} has already been loaded; set load_inplace (replace=True in Python) to "
                    "put this one in its place",
                    param="lora_name",
                    code="adapter_exists",
                )
        elif len(self._adapters) >= self._max_adapters:
            raise AdapterConflictError(
                f"{len(self._adapters)} adapters are loaded and max_cpu_loras={self._max_adapters}; unload one, or "
                "start with a larger --max-cpu-loras",
                param="lora_name",
                code="too_many_adapters",
            )
