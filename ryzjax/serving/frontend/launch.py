"""launch_engine: builds a running AsyncEngine from an EngineConfig, and logs how long each phase takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.device.capacity import Capacity, most_pages, plan_capacity
from ryzjax.serving.device.compiler import default_cache_dir, use_compile_cache
from ryzjax.serving.device.runner import ModelRunner
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.frontend.adapter_registry import AdapterRegistry
from ryzjax.serving.frontend.async_engine import AsyncEngine
from ryzjax.serving.frontend.served_model import ServedModel, open_served_model
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.config import EngineConfig, parse_bytes
from ryzjax.shipped import DEMO_MODEL, demo_notice

__all__ = ["launch_engine"]

_CPU_MIXED_TOKENS = 16
"""The default of `max_mixed_tokens` on a CPU, in tokens. A step of 16 tokens takes two to three times as long there as
a step of one token (docs/log.md)."""

_log = logging.getLogger(__name__)


def launch_engine(config: EngineConfig, *, model_name: str | None = None, show_progress: bool = True) -> AsyncEngine:
    """Loads a model, sizes its KV cache, compiles its steps, and starts an engine.

    Args:
      config: The model and the settings of the engine.
      model_name: The name by which callers address the model. The default is the name of its directory or repository.
      show_progress: Whether to show progress bars on stderr.

    Raises:
      ConfigError: A setting does not fit the model.
      UnsupportedModelError: The model's family or a feature of its config is not supported.
      LayoutError: The layout does not fit the devices or the model.
      CheckpointError: The checkpoint is missing or damaged.
      CapacityError: The model does not fit in memory.
    """
    if config.model == DEMO_MODEL:
        # As a warning, the notice shows even if no logging is set up, as in a notebook.
        _log.warning("%s", demo_notice())
    with _phase("config"):
        opened = open_served_model(config)
        _set_compile_cache(config.compile_cache)
    with _phase("tokenizer"):
        tokenizer = opened.load_tokenizer(config)
    with _phase("weights"):
        weights = opened.load_weights(config, show_progress)
    with _phase("plan"):
        runner, capacity = _sized_runner(opened, weights, config)
        del weights
        runner.allocate(capacity.num_pages)
    _log_model(opened, capacity)
    with _phase("compile"):
        _compile(runner, show_progress)
    name = model_name or Path(opened.source.name).name
    engine = _assemble(opened, tokenizer, runner, capacity, config, name)
    engine.start()
    for adapter_name, folder in config.lora_folders:
        engine.load_adapter(adapter_name, opened.adapters[adapter_name], root=folder)
    return engine


def _log_model(opened: ServedModel, capacity: Capacity) -> None:
    placement = opened.model.placement
    _log.info(
        "%s: %s parameters, %s, layout %s over %d device(s)",
        opened.source.name,
        f"{opened.model.num_parameters:,}",
        opened.config.dtype,
        placement.layout.name,
        placement.num_devices,
    )
    if quantized := opened.plan.num_int8_products:
        _log.info("activations are quantized to int8 for %d of %d low-bit weights", *quantized)
    for line in capacity.table().splitlines():
        _log.info("%s", line)


def _assemble(
    opened: ServedModel,
    tokenizer: Tokenizer,
    runner: ModelRunner,
    capacity: Capacity,
    config: EngineConfig,
    name: str,
) -> AsyncEngine:
    """Builds the scheduler, the engine and its frontend around a compiled runner."""
    slot_plan = opened.slot_plan
    scheduler = Scheduler(
        pool=PagePool(num_pages=capacity.num_pages, page_size_tokens=capacity.page_size_tokens),
        max_sequences=config.max_sequences,
        max_batch_tokens=config.max_batch_tokens,
        max_context_tokens=capacity.max_context_tokens,
        max_queue=config.max_queue,
        max_mixed_tokens=_max_mixed_tokens(config),
        rope_switch_length=opened.model.rope_switch_length,
        adapters=None if slot_plan is None else AdapterSlots(slot_plan.slots),
    )
    metrics = EngineMetrics(model_name=name)
    metrics.set_cache_config(
        {
            "num_pages": capacity.num_pages,
            "page_size_tokens": capacity.page_size_tokens,
            "kv_dtype": capacity.kv_dtype,
        }
    )
    registry = None
    if slot_plan is not None:
        registry = AdapterRegistry(slot_plan, max_adapters=config.max_cpu_loras, reserved_name=name)
    return AsyncEngine(
        Engine(runner, scheduler, metrics, overlap=config.overlap),
        tokenizer,
        opened.config,
        model_name=name,
        max_context_tokens=capacity.max_context_tokens,
        max_queue=config.max_queue,
        pooling=config.pooling,
        certificate=opened.certificate,
        default_sampling=opened.sampling,
        adapters=registry,
    )


def _max_mixed_tokens(config: EngineConfig) -> int | None:
    if config.max_mixed_tokens is None and jax.default_backend() == "cpu":
        return min(_CPU_MIXED_TOKENS, config.max_batch_tokens)
    return config.max_mixed_tokens


@contextmanager
def _phase(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    _log.info("phase %s %.3f", name, time.perf_counter() - started)


def _set_compile_cache(setting: str | None) -> None:
    if setting == "off":
        use_compile_cache(None)
    else:
        use_compile_cache(Path(setting) if setting else default_cache_dir())


def _sized_runner(
    opened: ServedModel, weights: dict[str, jax.Array], config: EngineConfig
) -> tuple[ModelRunner, Capacity]:
    """Returns the runner and the capacity of its KV cache.

    The KV cache pages get the memory that is free beside the weights and the temporaries of the largest step.
    """
    model, kv_format = opened.model, opened.kv_format

    def runner(max_context_tokens: int) -> ModelRunner:
        return ModelRunner(
            model,
            weights,
            buckets=Buckets.make(
                max_sequences=config.max_sequences,
                max_batch_tokens=config.max_batch_tokens,
                multiple=model.placement.axis_size("tokens"),
            ),
            max_sequences=config.max_sequences,
            max_context_tokens=max_context_tokens,
            page_size_tokens=config.page_size_tokens,
            kv_format=kv_format,
            adapters=opened.slot_plan,
        )

    wanted = config.max_context_tokens or model.config.max_position
    first = runner(wanted)
    capacity = plan_capacity(
        model.config,
        model.placement,
        kv_dtype=kv_format.dtype,
        page_size_tokens=config.page_size_tokens,
        max_sequences=config.max_sequences,
        max_context_tokens=config.max_context_tokens,
        kv_memory_bytes=None if config.kv_memory is None else parse_bytes(config.kv_memory),
        memory_fraction=config.memory_fraction,
        weight_bytes=first.weight_bytes,
        adapter_bytes=first.adapter_bytes,
        temporary_bytes=first.temporary_bytes(most_pages(config.max_sequences, wanted, config.page_size_tokens)),
    )
    return (first if capacity.max_context_tokens == wanted else runner(capacity.max_context_tokens)), capacity


def _compile(runner: ModelRunner, show_progress: bool) -> None:
    columns = TextColumn("Compiling step shapes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show_progress) as progress:
        task = progress.add_task("compile", total=len(runner.program_keys))
        runner.compile(on_done=lambda key: progress.advance(task))
