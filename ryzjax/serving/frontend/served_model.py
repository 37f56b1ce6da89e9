"""open_served_model: reads a model's config, checks it against the settings, and plans its weights and adapters.

No weights are loaded here, so that a setting that does not fit the model is reported within a second.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

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
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults, sampling_defaults
from ryzjax.serving.messages.config import EngineConfig
from ryzjax.sharding import Layout, Placement

__all__ = ["ServedModel", "open_served_model"]

_DEFAULT_RANK = 16
"""Rank of the adapter slots if neither a setting nor an adapter gives one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model whose config is read and checked, before its weights are loaded.

    Attributes:
      source: The files of the model.
      config: The model's config.
      sampling: The sampling settings of requests that name none.
      kv_format: The dtype of the KV cache, and its scales for fp8.
      plan: The plan by which the weights are loaded.
      certificate: A summary of the quantization certificate; None if the model has none.
      adapters: The adapters of `--lora`, by name.
      slot_plan: The slots for adapters on the device; None if no adapters are served.
    """

    source: CheckpointSource
    config: ModelConfig
    sampling: SamplingDefaults
    kv_format: KVFormat
    plan: WeightPlan
    certificate: dict[str, object] | None
    adapters: Mapping[str, Adapter]
    slot_plan: SlotPlan | None

    @property
    def model(self) -> AbstractModel:
        """The abstract model."""
        return self.plan.model

    def load_tokenizer(self, config: EngineConfig) -> Tokenizer:
        """Loads the tokenizer. Raises ConfigError if it has more tokens than the model."""
        tokenizer = _tokenizer(self.source, config, self.config)
        _check_vocabulary(tokenizer, self.config, self.source)
        return tokenizer

    def load_weights(self, config: EngineConfig, show_progress: bool) -> dict[str, jax.Array]:
        """Loads the weights into their shardings, or draws random ones for `load_format="dummy"`."""
        if config.load_format == "dummy":
            return dummy_weights(self.plan.model.weights, config.seed)
        return self.plan.load(show_progress=show_progress)


def open_served_model(config: EngineConfig) -> ServedModel:
    """Reads and checks everything about a model but its tokenizer and its weights.

    Raises:
      ConfigError: A setting does not fit the model.
      UnsupportedModelError: The model's family or a feature of its config is not supported.
      LayoutError: The layout does not fit the devices or the model.
      CheckpointError: The checkpoint or an adapter is missing or damaged.
    """
    source = resolve_source(config.model, revision=config.model_revision, load_format=config.load_format)
    model_config = read_model_config(source, dtype=config.dtype)
    _check_context(config, model_config)
    sampling = _sampling_defaults(config, source)
    kv_format = _kv_format(source, config, model_config)
    placement = Placement(Layout.load(config.layout))
    plan = plan_weights(source, model_config, placement, weights=config.weights, group=config.weights_group)
    plan = plan.with_activations(config.activations)
    certificate = _certificate(source)
    adapters = {name: read_adapter(Path(folder), plan.model) for name, folder in config.lora_folders}
    return ServedModel(
        source=source,
        config=model_config,
        sampling=sampling,
        kv_format=kv_format,
        plan=plan,
        certificate=certificate,
        adapters=adapters,
        slot_plan=_slot_plan(plan.model, config, adapters),
    )


def _check_context(config: EngineConfig, model: ModelConfig) -> None:
    if config.max_context_tokens is not None and config.max_context_tokens > model.max_position:
        raise ConfigError(
            f"max_context_tokens={config.max_context_tokens} is more than the {model.max_position} positions the model "
            "was made for; lower it, or serve a checkpoint whose config scales its RoPE further"
        )


def _sampling_defaults(config: EngineConfig, source: CheckpointSource) -> SamplingDefaults:
    """Returns the model's own settings for requests that name none; empty if it has none or they are ignored."""
    if config.generation_config == "none" or source.generation is None:
        return {}
    defaults = sampling_defaults(source.generation, source=source.name)
    if defaults:
        named = ", ".join(f"{name}={value}" for name, value in defaults.items())
        _log.info("sampling defaults of the model's generation_config.json: %s", named)
    return defaults


def _kv_format(source: CheckpointSource, config: EngineConfig, model: ModelConfig) -> KVFormat:
    """Returns the dtype of the KV cache, with the checkpoint's scales for fp8."""
    dtype = model.dtype if config.kv_dtype == "auto" else config.kv_dtype
    scales = fp8_kv_scales(source, model, unit=config.kv_scale_unit) if dtype == "fp8_e4m3" else None
    return KVFormat(dtype=dtype, scales=scales)


def _certificate(source: CheckpointSource) -> dict[str, object] | None:
    found = read_certificate(source.directory) if source.weight_format == "safetensors" else None
    return None if found is None else certificate_summary(found)


def _slot_plan(model: AbstractModel, config: EngineConfig, adapters: Mapping[str, Adapter]) -> SlotPlan | None:
    """Returns the adapter slots that the settings ask for or, by default, that the given adapters need."""
    slots = len(adapters) if config.max_loras is None else config.max_loras
    if not slots:
        return None
    ranks = [adapter.max_rank for adapter in adapters.values()]
    return SlotPlan(model, slots, config.max_lora_rank or max(ranks, default=_DEFAULT_RANK))


def _check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, source: CheckpointSource) -> None:
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {source.path} has {tokenizer.vocab_size} tokens but the model's vocab_size is "
            f"{model.vocab_size}; they belong to different models"
        )


def _tokenizer(source: CheckpointSource, config: EngineConfig, model: ModelConfig) -> Tokenizer:
    """Loads the model's tokenizer. Random weights without a tokenizer get one of bytes."""
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
