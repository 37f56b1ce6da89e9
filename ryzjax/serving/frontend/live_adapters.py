"""LiveAdapters: loads and unloads adapters of an engine while it runs."""

from __future__ import annotations

import time
from pathlib import Path

from ryzjax.errors import ConfigError
from ryzjax.lora import Adapter
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.engine.engine_thread import EngineThread
from ryzjax.serving.frontend.adapter_registry import AdapterRegistry
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["LiveAdapters"]


class LiveAdapters:
    """Keeps the registry, the engine's thread and the metrics in step with each other. Safe on any thread.

    Args:
      registry: The adapters that requests may name; None if the engine serves none.
      thread: The thread of the engine, which puts adapters into slots of the device.
      metrics: The metrics of the engine.
    """

    def __init__(self, registry: AdapterRegistry | None, thread: EngineThread, metrics: EngineMetrics):
        self._registry = registry
        self._thread = thread
        self._metrics = metrics

    def all(self) -> tuple[ServedAdapter, ...]:
        """Returns the adapters that requests may name, in the order in which they were loaded."""
        return () if self._registry is None else self._registry.all()

    def get(self, name: str | None) -> ServedAdapter | None:
        """Returns the current version of an adapter; None for the name None.

        Raises:
          ConfigError: The engine serves no adapters.
          AdapterNotFoundError: No adapter has this name.
        """
        return None if name is None else self._known().get(name)

    def load(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Loads an adapter; `AsyncEngine.load_adapter` describes the arguments and the errors."""
        started = time.perf_counter()
        registry = self._known()
        adapter, replaced = registry.register(name, source, replace=replace, root=root)
        if replaced is not None:
            self._thread.retire(replaced)
        self._thread.prefetch(adapter)
        self._metrics.adapter_registered(time.perf_counter() - started, len(registry.all()))
        return adapter

    def unload(self, name: str) -> None:
        """Removes an adapter; `AsyncEngine.unload_adapter` describes the errors."""
        registry = self._known()
        self._thread.retire(registry.unregister(name))
        self._metrics.set_registered_adapters(len(registry.all()))

    def _known(self) -> AdapterRegistry:
        if self._registry is None:
            raise ConfigError("no adapters are served: max_loras is 0; start with --max-loras 4, or max_loras=4")
        return self._registry
