"""EngineConfig: the settings of an engine. Command-line flags, TOML keys and `LLM(...)` options derive from it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypedDict

from tyro.conf import Positional, UseAppendAction
from tyro.conf import arg as tyro_arg

from ryzjax.errors import ConfigError
from ryzjax.serving.messages.field_types import check_field_types
from ryzjax.shipped import DEMO_MODEL

__all__ = ["EngineConfig", "EngineOptions", "parse_bytes"]

_UNITS = {"": 1, "B": 1} | {f"{prefix}iB": 1024**i for i, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}B": 1000**i for i, prefix in enumerate("KMGT", 1)}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The model to serve and the settings of the engine."""

    model: Annotated[Positional[str], tyro_arg(metavar="[MODEL]")] = DEMO_MODEL
    """Local directory, GGUF file, Hugging Face id, or, with --load-format dummy, a config.json."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations. auto uses the checkpoint's; float16 becomes bfloat16."""
    weights: Literal["auto", "bf16", "int8", "int4", "nf4"] = "auto"
    """auto serves the weights as the checkpoint stores them. int8, int4 and nf4 (NormalFloat4 with double quantization)
    quantize a plain checkpoint while loading, with embeddings in int8. bf16 dequantizes a quantized checkpoint."""
    weights_group: Literal[32, 64, 128] = 64
    """Group size: the in features that share a scale, with --weights int8, int4 and nf4."""
    activations: Literal["auto", "bf16", "int8"] = "auto"
    """How activations are multiplied with low-bit weights on a CPU. int8 quantizes every 32 activations of a token
    first; bf16 leaves them as they are. auto takes int8 for 4-bit weights, if that is faster on this machine."""
    kv_dtype: Literal["auto", "bfloat16", "float32", "int8", "fp8_e4m3"] = "auto"
    """Dtype of the KV cache. auto uses the model's. int8 has a scale for each token and head; fp8_e4m3 needs
    calibrated scales."""
    kv_scale_unit: bool = False
    """Use 1.0 for all scales of an fp8_e4m3 cache, whatever the checkpoint contains. Quality may suffer."""
    load_format: Literal["auto", "safetensors", "gguf", "orbax", "dummy"] = "auto"
    """Format of the weights. auto uses the files that exist; dummy creates random weights, for benchmarks."""
    layout: str = "single"
    """Sharding layout: single, tp, tp_dp, fsdp_tp, ep, ep_dp, or the path of a TOML file."""
    max_context_tokens: int | None = None
    """Largest number of tokens of prompt and output together. The default is the model's context length, or less if the
    memory holds less."""
    max_sequences: int = 32
    """Largest number of sequences that run at once."""
    max_batch_tokens: int = 512
    """Largest number of tokens of a step. Longer prompts are prefilled in chunks."""
    max_mixed_tokens: int | None = None
    """Largest number of tokens of a step in which some sequences decode and others prefill, with at least two for every
    sequence that decodes. Small steps keep the time between tokens even; large steps finish prompts sooner. The default
    is 16 on a CPU, where small steps delay a prompt little (docs/log.md), and max_batch_tokens on other devices."""
    page_size_tokens: int = 64
    """Tokens of a KV cache page."""
    kv_memory: str | None = None
    """Memory of the KV cache on each device, such as 2GiB. The default is what memory_fraction leaves."""
    memory_fraction: float = 0.5
    """Fraction of the device's memory (on a CPU, of the available memory) for weights, temporaries and the KV cache."""
    max_queue: int = 256
    """Largest number of waiting requests. Further requests are refused with HTTP status 429."""
    overlap: bool = True
    """Dispatch the next step before reading the tokens of the previous one."""
    compile_cache: str | None = None
    """Folder of compiled programs, or off. The default is in the user's cache directory."""
    chat_template: str | None = None
    """Jinja file that replaces the model's chat template."""
    generation_config: Literal["auto", "none"] = "auto"
    """Defaults of temperature, top_k, top_p, min_p and repetition_penalty for requests that do not set them. auto reads
    the model's generation_config.json; none uses 1, 0, 1, 0 and 1."""
    special_tokens_in_messages: bool = False
    """Encode special tokens in chat messages as tokens instead of as text. The author of a message can then end it and
    write the next message in any role."""
    lora: Annotated[tuple[str, ...], UseAppendAction] = ()
    """NAME=DIRECTORY of a LoRA adapter in PEFT's format. Requests use NAME as their model. Repeatable."""
    max_loras: int | None = None
    """Number of adapters on the device at once. The default is the number of --lora options. 0 serves no adapters."""
    max_lora_rank: int | None = None
    """Largest rank of an adapter. The default is the largest rank of --lora, or 16. A step's cost grows with it."""
    max_cpu_loras: int = 64
    """Largest number of registered adapters. Those without a slot on the device stay in host memory."""
    pooling: Literal["last", "mean"] = "last"
    """Default pooling of embeddings: the hidden state of the last token, or the mean over all tokens. A request may
    choose the other."""
    seed: int = 0
    """Seed of the random weights of --load-format dummy."""

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> EngineConfig:
        """Returns the config of options given in Python. Paths may be `os.PathLike`, and tuples may be lists.

        Raises:
          ConfigError: an option is unknown, or its value is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
                raise ConfigError(
                    f"option {name!r} is unknown; {hint}The options are the fields of "
                    "ryzjax.serving.messages.config.EngineConfig; `ryzjax serve --help` describes them"
                )
        values: dict[str, Any] = {
            name: os.fspath(value)
            if isinstance(value, os.PathLike)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in options.items()
        }
        return cls(**values)

    def __post_init__(self) -> None:
        check_field_types(self)
        for name, low, high in (
            ("max_sequences", 1, 4096),
            ("max_batch_tokens", 1, 2**20),
            ("page_size_tokens", 1, 4096),
            ("max_queue", 0, 2**20),
            ("max_cpu_loras", 1, 2**20),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
        if self.max_context_tokens is not None and self.max_context_tokens < 2:
            raise ConfigError(f"max_context_tokens={self.max_context_tokens} is too small; expected at least 2")
        if self.max_mixed_tokens is not None and not 1 <= self.max_mixed_tokens <= self.max_batch_tokens:
            raise ConfigError(
                f"max_mixed_tokens={self.max_mixed_tokens} is out of range; expected 1 to max_batch_tokens="
                f"{self.max_batch_tokens}"
            )
        if self.max_batch_tokens < self.max_sequences:
            raise ConfigError(
                f"max_batch_tokens={self.max_batch_tokens} is less than max_sequences={self.max_sequences}; "
                "every running sequence must fit a step"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(
                f"memory_fraction={self.memory_fraction} is out of range; expected more than 0, at most 1"
            )
        for name, value, low, high in (
            ("max_loras", self.max_loras, 0, 1024),
            ("max_lora_rank", self.max_lora_rank, 1, 512),
        ):
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
        names = [name for name, _ in self.lora_folders]
        if len(set(names)) < len(names):
            raise ConfigError(f"--lora names an adapter twice; expected different names, got {', '.join(names)}")
        if names and self.max_loras == 0:
            raise ConfigError(
                f"--lora names {len(names)} adapters, but max_loras is 0; raise max_loras, or leave it out"
            )
        if self.max_cpu_loras < max(self.max_loras or 0, len(names)):
            raise ConfigError(
                f"max_cpu_loras={self.max_cpu_loras} is less than max_loras, or than the adapters of --lora; raise "
                "max_cpu_loras, which counts the adapters in slots too"
            )
        if self.kv_memory is not None:
            parse_bytes(self.kv_memory)
        if self.kv_scale_unit and self.kv_dtype != "fp8_e4m3":
            raise ConfigError(
                f"kv_scale_unit is set, but kv_dtype={self.kv_dtype} has no calibrated scales; leave it out, or set "
                "kv_dtype=fp8_e4m3"
            )

    @property
    def lora_folders(self) -> tuple[tuple[str, str], ...]:
        """The name and directory of each adapter of `lora`.

        Raises:
          ConfigError: an entry is not NAME=DIRECTORY.
        """
        pairs = [text.partition("=") for text in self.lora]
        for text, (name, _, folder) in zip(self.lora, pairs, strict=True):
            if not name or not folder:
                raise ConfigError(f"--lora {text!r} is not understood; expected NAME=DIRECTORY")
        return tuple((name, folder) for name, _, folder in pairs)


class EngineOptions(TypedDict, total=False):
    """The fields of EngineConfig except `model`, for `LLM(model, **options)`."""

    model_revision: str | None
    dtype: Literal["auto", "float32", "bfloat16"]
    weights: Literal["auto", "bf16", "int8", "int4", "nf4"]
    weights_group: Literal[32, 64, 128]
    activations: Literal["auto", "bf16", "int8"]
    kv_dtype: Literal["auto", "bfloat16", "float32", "int8", "fp8_e4m3"]
    kv_scale_unit: bool
    load_format: Literal["auto", "safetensors", "gguf", "orbax", "dummy"]
    layout: str
    max_context_tokens: int | None
    max_sequences: int
    max_batch_tokens: int
    max_mixed_tokens: int | None
    page_size_tokens: int
    kv_memory: str | None
    memory_fraction: float
    max_queue: int
    overlap: bool
    compile_cache: str | None
    chat_template: str | None
    generation_config: Literal["auto", "none"]
    special_tokens_in_messages: bool
    lora: tuple[str, ...]
    max_loras: int | None
    max_lora_rank: int | None
    max_cpu_loras: int
    pooling: Literal["last", "mean"]
    seed: int


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size such as "2GiB", "512 MB" or "1048576"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = {name.lower(): size for name, size in _UNITS.items()}.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"size {text!r} is not understood; expected a number and a unit, such as 2GiB or 512MB")
    return int(float(match[1]) * unit)
