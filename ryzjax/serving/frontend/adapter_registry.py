"""AdapterRegistry: the adapters that requests may name, on the host. Shared by callers' threads."""

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
# Over all engines of the process: what is salted with a version never meets another adapter's.
_versions = itertools.count(1)


class AdapterRegistry:
    """Names and their current versions.

    Args:
      plan: the slots they will be put into.
      max_adapters: names there may be.
      reserved_name: the model's own.
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
        """Reads, checks and packs an adapter, and gives it a name; nothing changes where that fails.

        Args:
          root: where it came from, for people; by default its folder, or its name.

        Returns:
          The new version, and the one it replaces.

        Raises:
          ConfigError: the name has characters names have not, or is the model's; the adapter does not fit.
          CheckpointError: the folder is not an adapter's, or damaged.
          AdapterConflictError: the name is taken and `replace` is not set, or there are `max_adapters`.
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
        """Takes a name away; its version.

        Raises:
          AdapterNotFoundError: there is no such name.
        """
        with self._lock:
            adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise AdapterNotFoundError(name)
        return adapter

    def get(self, name: str) -> ServedAdapter:
        """The current version.

        Raises:
          AdapterNotFoundError: there is no such name.
        """
        adapter = self._adapters.get(name)
        if adapter is None:
            raise AdapterNotFoundError(name)
        return adapter

    def all(self) -> tuple[ServedAdapter, ...]:
        """The current versions, in the order their names were given."""
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
