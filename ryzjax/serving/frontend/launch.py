"""launch_engine: from an EngineConfig to a running AsyncEngine, phase by phase, each timed."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ryzjax.checkpoint.certificate import certificate_summary, read_certificate
from ryzjax.checkpoint.kv_scales import fp8_kv_scales
from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.dummy import dummy_weights
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.weight_plan import WeightPlan, plan_weights
from ryzjax.lora import Adapter
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVFormat
from ryzjax.obs.metrics import EngineMetrics
from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.device.capacity import Capacity, most_pages, plan_capacity
from ryzjax.serving.device.compiler import default_cache_dir, use_compile_cache
from ryzjax.serving.device.runner import ModelRunner
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.frontend.adapter_registry import AdapterRegistry
from ryzjax.serving.frontend.async_engine import AsyncEngine
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults, sampling_defaults
from ryzjax.serving.host.adapter_slots import AdapterSlots
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.config import EngineConfig, parse_bytes
from ryzjax.sharding import Layout, Placement
from ryzjax.shipped import DEMO_MODEL, demo_notice

__all__ = ["launch_engine"]

_DEFAULT_RANK = 16
_CPU_MIXED_TOKENS = 16
"""A step of 16 tokens takes two to three times as long as one of a single token (docs/log.md)."""

_log = logging.getLogger(__name__)


def launch_engine(config: EngineConfig, *, model_name: str | None = None, show_progress: bool = True) -> AsyncEngine:
    """Loads, sizes, compiles and starts an engine.

    Args:
      config: what to serve and how.
      model_name: what callers call the model; by default its directory's or repository's name.
      show_progress: bars on stderr.

    Raises:
      ConfigError, UnsupportedModelError, LayoutError, CheckpointError, CapacityError: before anything is served.
    """
    if config.model == DEMO_MODEL:
        # A warning: Python shows those without any logging set up, as in a notebook.
        _log.warning("%s", demo_notice())
    with _phase("config"):
        source = resolve_source(config.model, revision=config.model_revision, load_format=config.load_format)
        model_config = read_model_config(source, dtype=config.dtype)
        _check_context(config, model_config)
        sampling = _sampling_defaults(config, source)
        kv_format = _kv_format(source, config, model_config)
        placement = Placement(Layout.load(config.layout))
        plan = plan_weights(source, model_config, placement, weights=config.weights, group=config.weights_group)
        model = plan.model
        certificate = _certificate(source)
        adapters = {name: read_adapter(Path(folder), model) for name, folder in config.lora_folders}
        slot_plan = _slot_plan(model, config, adapters)
        _set_compile_cache(config.compile_cache)
    with _phase("tokenizer"):
        tokenizer = _tokenizer(source, config, model_config)
        _check_vocabulary(tokenizer, model_config, source)
    with _phase("weights"):
        weights = _weights(plan, config, show_progress)
    with _phase("plan"):
        runner, capacity = _sized_runner(model, weights, config, kv_format, slot_plan)
        del weights
        runner.allocate(capacity.num_pages)
    _log.info(
        "%s: %s parameters, %s, layout %s over %d device(s)",
        source.name,
        f"{model.num_parameters:,}",
        model_config.dtype,
        placement.layout.name,
        placement.num_devices,
    )
    for line in capacity.table().splitlines():
        _log.info("%s", line)
    with _phase("compile"):
        _compile(runner, show_progress)
    pool = PagePool(num_pages=capacity.num_pages, page_size_tokens=capacity.page_size_tokens)
    scheduler = Scheduler(
        pool=pool,
        max_sequences=config.max_sequences,
        max_batch_tokens=config.max_batch_tokens,
        max_context_tokens=capacity.max_context_tokens,
        max_queue=config.max_queue,
        max_mixed_tokens=_max_mixed_tokens(config),
        rope_switch_length=model.rope_switch_length,
        adapters=None if slot_plan is None else AdapterSlots(slot_plan.slots),
    )
    name = model_name or Path(source.name).name
    metrics = EngineMetrics(model_name=name)
    metrics.set_cache_config(
        {
            "num_pages": capacity.num_pages,
            "page_size_tokens": capacity.page_size_tokens,
            "kv_dtype": capacity.kv_dtype,
        }
    )
    engine = AsyncEngine(
        Engine(runner, scheduler, metrics, overlap=config.overlap),
        tokenizer,
        model_config,
        model_name=name,
        max_context_tokens=capacity.max_context_tokens,
        max_queue=config.max_queue,
        pooling=config.pooling,
        certificate=certificate,
        default_sampling=sampling,
        adapters=(
            None
            if slot_plan is None
            else AdapterRegistry(slot_plan, max_adapters=config.max_cpu_loras, reserved_name=name)
        ),
    )
    engine.start()
    for adapter_name, folder in config.lora_folders:
        engine.load_adapter(adapter_name, adapters[adapter_name], root=folder)
    return engine


def _max_mixed_tokens(config: EngineConfig) -> int | None:
    if config.max_mixed_tokens is None and jax.default_backend() == "cpu":
        return min(_CPU_MIXED_TOKENS, config.max_batch_tokens)
    return config.max_mixed_tokens


@contextmanager
def _phase(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    _log.info("phase %s %.3f", name, time.perf_counter() - started)


def _certificate(source: CheckpointSource) -> dict[str, object] | None:
    found = read_certificate(source.directory) if source.weight_format == "safetensors" else None
    return None if found is None else certificate_summary(found)


def _set_compile_cache(setting: str | None) -> None:
    if setting == "off":
        use_compile_cache(None)
    else:
        use_compile_cache(Path(setting) if setting else default_cache_dir())


def _check_context(config: EngineConfig, model: ModelConfig) -> None:
    if config.max_context_tokens is not None and config.max_context_tokens > model.max_position:
        raise ConfigError(
            f"max_context_tokens={config.max_context_tokens} is more than the {model.max_position} positions the model "
            "was made for; lower it, or serve a checkpoint whose config scales its RoPE further"
        )


def _sampling_defaults(config: EngineConfig, source: CheckpointSource) -> SamplingDefaults:
    """The sampling settings of requests that name none, as far as the model gives them."""
    if config.generation_config == "none" or source.generation is None:
        return {}
    defaults = sampling_defaults(source.generation, source=source.name)
    if defaults:
        named = ", ".join(f"{name}={value}" for name, value in defaults.items())
        _log.info("sampling defaults of the model's generation_config.json: %s", named)
    return defaults


def _kv_format(source: CheckpointSource, config: EngineConfig, model: ModelConfig) -> KVFormat:
    """What the KV cache is kept in; of fp8 with the checkpoint's scales."""
    dtype = model.dtype if config.kv_dtype == "auto" else config.kv_dtype
    scales = fp8_kv_scales(source, model, unit=config.kv_scale_unit) if dtype == "fp8_e4m3" else None
    return KVFormat(dtype=dtype, scales=scales)


def _check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, source: CheckpointSource) -> None:
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {source.path} has {tokenizer.vocab_size} tokens but the model's vocab_size is "
            f"{model.vocab_size}; they belong to different models"
        )


def _tokenizer(source: CheckpointSource, config: EngineConfig, model: ModelConfig) -> Tokenizer:
    """The model's tokenizer; one of bytes where random weights come without."""
    load = partial(
        Tokenizer.load,
        chat_template=config.chat_template,
        special_tokens_in_messages=config.special_tokens_in_messages,
    )
    has_tokenizer = source.weight_format == "gguf" or (source.path / "tokenizer.json").is_file()
    if config.load_format != "dummy" or has_tokenizer:
        return load(source.path)
    _log.info("%s has no tokenizer.json: random weights get a tokenizer of bytes", source.path)
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder), vocab_size=model.vocab_size)
        return load(folder)


def _weights(plan: WeightPlan, config: EngineConfig, show_progress: bool) -> dict[str, jax.Array]:
    if config.load_format == "dummy":
        return dummy_weights(plan.model.weights, config.seed)
    return plan.load(show_progress=show_progress)


def _slot_plan(model: AbstractModel, config: EngineConfig, adapters: Mapping[str, Adapter]) -> SlotPlan | None:
    """The slots for adapters, as asked for or as the adapters at hand need them."""
    slots = len(adapters) if config.max_loras is None else config.max_loras
    if not slots:
        return None
    ranks = [adapter.max_rank for adapter in adapters.values()]
    return SlotPlan(model, slots, config.max_lora_rank or max(ranks, default=_DEFAULT_RANK))


def _sized_runner(
    model: AbstractModel,
    weights: dict[str, jax.Array],
    config: EngineConfig,
    kv_format: KVFormat,
    adapters: SlotPlan | None,
) -> tuple[ModelRunner, Capacity]:
    """The runner, and what fits: the pool takes what weights and the largest step's temporaries leave."""

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
            adapters=adapters,
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
