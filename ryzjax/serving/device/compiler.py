"""Compiling step shapes ahead of traffic: in threads, with a cache on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import jax

Key = TypeVar("Key", bound=Hashable)

__all__ = ["compile_all", "default_cache_dir", "use_compile_cache"]

# XLA lowers deep programs recursively: the default 8 MB thread stack overflows.
_STACK_BYTES = 64 * 1024 * 1024


def default_cache_dir() -> Path:
    """The compile cache's folder in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ryzjax" / "compile"


def use_compile_cache(folder: Path | None) -> None:
    """Keeps compiled programs in `folder` (None turns the cache off).

    JAX keys entries by program, versions, flags and device, so one folder serves every model.
    """
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        # The defaults skip small and quick programs; a server has twenty of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_all(
    lower: Mapping[Key, Callable[[], jax.stages.Lowered]], on_done: Callable[[Key], None] = lambda key: None
) -> dict[Key, jax.stages.Compiled]:
    """Lowers and compiles each program, several at a time.

    Args:
      lower: key -> a function that traces and lowers one program.
      on_done: called with each key as its program is ready.
    """
    previous = threading.stack_size(_STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="compile") as pool:
            futures = {pool.submit(lambda make=make: make().compile()): key for key, make in lower.items()}
            compiled = {}
            for future in as_completed(futures):
                compiled[futures[future]] = future.result()
                on_done(futures[future])
            return compiled
    finally:
        threading.stack_size(previous)
