"""What fits: the KV pool's size from a memory budget, and the table that start-up prints."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ryzjax.errors import CapacityError
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVDtype, kv_page_bytes
from ryzjax.sharding import Placement

__all__ = ["Capacity", "device_memory_bytes", "most_pages", "plan_capacity"]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a memory budget holds. Bytes are per device.

    Attributes:
      budget_bytes: memory for weights (already there), temporaries and the pool.
      weight_bytes, adapter_bytes, temporary_bytes: taken before the pool.
      kv_dtype: numbers of the pool.
      page_bytes: one page of all layers, scales included.
      num_pages: pages of the pool, page 0 (padding) included.
      page_size_tokens: tokens a page.
      max_context_tokens: longest sequence.
    """

    budget_bytes: int
    weight_bytes: int
    temporary_bytes: int
    kv_dtype: KVDtype
    page_bytes: int
    num_pages: int
    page_size_tokens: int
    max_context_tokens: int
    adapter_bytes: int = 0

    @property
    def pool_tokens(self) -> int:
        """Tokens the pool holds over all sequences."""
        return (self.num_pages - 1) * self.page_size_tokens

    def table(self) -> str:
        """The plan as lines of text."""
        rows = [
            ("memory budget", _gib(self.budget_bytes)),
            ("weights", _gib(self.weight_bytes)),
            *([("slots of adapters", _gib(self.adapter_bytes))] if self.adapter_bytes else []),
            ("step temporaries", _gib(self.temporary_bytes)),
            (
                "KV pool",
                f"{_gib(self.num_pages * self.page_bytes)} = {self.num_pages} pages of {_mib(self.page_bytes)}, "
                f"{self.kv_dtype}",
            ),
            ("tokens in the pool", f"{self.pool_tokens:,}"),
            ("longest context, batch 1", f"{min(self.max_context_tokens, self.pool_tokens):,} tokens"),
        ]
        return "\n".join(f"  {name:<26}{value}" for name, value in rows)


def device_memory_bytes(placement: Placement, held_bytes: int) -> int:
    """Bytes a device of the mesh may use, those this process holds on it already included.

    Args:
      held_bytes: what is held. An accelerator reports its whole memory; of the machine's memory, what is
        available now is counted, since other programs live there too, and CPU devices share it.
    """
    device = placement.mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats["bytes_limit"]
    return _available_memory_bytes() // placement.num_devices + held_bytes


def _available_memory_bytes() -> int:
    """Memory programs can still get without swapping; the whole memory where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def most_pages(max_sequences: int, max_context_tokens: int, page_size_tokens: int) -> int:
    """Pages that every slot at full context uses, and page 0: more would never be touched."""
    return max_sequences * -(-max_context_tokens // page_size_tokens) + 1


def plan_capacity(
    config: ModelConfig,
    placement: Placement,
    *,
    kv_dtype: KVDtype,
    page_size_tokens: int,
    max_sequences: int,
    max_context_tokens: int | None,
    kv_memory_bytes: int | None,
    memory_fraction: float,
    weight_bytes: int,
    temporary_bytes: int,
    adapter_bytes: int = 0,
) -> Capacity:
    """Sizes the pool.

    Args:
      kv_dtype: numbers of the pool.
      max_context_tokens: as asked for; None takes the model's, or less where only less fits.
      kv_memory_bytes: the pool's budget per device; None takes what `memory_fraction` leaves.
      memory_fraction: share of the device's memory for weights, temporaries and pool.
      weight_bytes: weights on one device, loaded already.
      temporary_bytes: the largest step's temporaries on one device.
      adapter_bytes: slots of adapters on one device, not made yet.

    Raises:
      CapacityError: no page fits, or not one sequence of `max_context_tokens`; carries the table.
    """
    page_bytes = kv_page_bytes(config, placement, kv_dtype, page_size_tokens)
    if kv_memory_bytes is None:
        budget = int(device_memory_bytes(placement, weight_bytes) * memory_fraction)
        pool_bytes = budget - weight_bytes - adapter_bytes - temporary_bytes
    else:
        pool_bytes = kv_memory_bytes
        budget = weight_bytes + adapter_bytes + temporary_bytes + kv_memory_bytes
    context = max_context_tokens or config.max_position
    most = most_pages(max_sequences, context, page_size_tokens)
    num_pages = max(min(pool_bytes // page_bytes, most), 0)
    capacity = Capacity(
        budget_bytes=budget,
        weight_bytes=weight_bytes,
        temporary_bytes=temporary_bytes,
        kv_dtype=kv_dtype,
        page_bytes=page_bytes,
        num_pages=num_pages,
        page_size_tokens=page_size_tokens,
        max_context_tokens=context,
        adapter_bytes=adapter_bytes,
    )
    remedy = "raise --kv-memory or --memory-fraction, or lower --max-context-tokens"
    if num_pages < 2:
        raise CapacityError(f"no KV page fits the memory; {remedy}\n{capacity.table()}")
    if capacity.pool_tokens < context:
        if max_context_tokens is not None:
            raise CapacityError(
                f"a sequence of max_context_tokens={context:,} does not fit; {remedy}\n{capacity.table()}"
            )
        capacity = replace(capacity, max_context_tokens=capacity.pool_tokens)
    return capacity


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**30 else _mib(count)


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
