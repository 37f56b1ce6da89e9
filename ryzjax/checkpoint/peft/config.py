"""Reads and writes PEFT's `adapter_config.json`: ranks, scales and targets of a LoRA.

A field that may change what the adapter computes, and that RyzJAX does not apply, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.errors import CheckpointError, ConfigError, UnsupportedModelError
from ryzjax.lora.config import LoraConfig

__all__ = ["CONFIG_FILE", "PeftConfig", "peft_config_json", "read_peft_config"]

CONFIG_FILE = "adapter_config.json"
_MAX_JSON_BYTES = 10_000_000
_ALL_LINEAR = "all-linear"

_NO_MATHS = frozenset(
    {
        "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config",
        "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "velora_config", "qalora_group_size", "ensure_weight_tying", "layers_to_transform", "layers_pattern",
    }
)  # fmt: skip
"""Keys about the adapter's origin or training, and keys (layers_*) that repeat what its tensors say."""

_BASE_KEPT = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights, beside true and false, that do not change the base."""
_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Values that subtract the initial update from the base's weights. Such an adapter belongs to its own, changed base."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The config of an adapter. Patterns and targets refer to PEFT's module paths ("model.layers.0.self_attn.q_proj").

    Attributes:
      lora: Ranks, scales and kind of the adapter. Its `targets` are not set.
      targets: Module paths, or their endings after a dot; a regular expression for whole paths; or "all-linear".
      exclude: The same, without "all-linear"; () for none.
      is_partial: Whether `layers_to_transform` leaves out some of the targeted modules.
      base_model: The model that the adapter was trained on; None if the config does not name it.
    """

    lora: LoraConfig
    targets: tuple[str, ...] | str
    exclude: tuple[str, ...] | str
    is_partial: bool
    base_model: str | None

    def is_target(self, path: str) -> bool:
        """Whether PEFT would adapt the linear layer at a module path; `layers_to_transform` is not considered."""
        if self.exclude and _names(self.exclude, path):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == _ALL_LINEAR:
            return path != "lm_head"
        return _names(self.targets, path)


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads and checks the config in an adapter's directory.

    Raises:
      CheckpointError: The file is missing, or is not valid JSON.
      UnsupportedModelError: The kind of adapter, or one of its fields, is not supported.
    """
    path = folder / CONFIG_FILE
    fields = ConfigFields(raw=_read_object(path), source=str(path))
    if fields.raw.get("peft_type") != "LORA":
        raise fields.fail("peft_type", "'LORA'", remedy="Other kinds of adapter are not supported; train a LoRA.")
    fields.has("peft_type")
    for key in ("fan_in_fan_out", "lora_bias"):
        if fields.boolean(key, default=False):
            raise fields.fail(key, "false", remedy="It is not supported; train the adapter without it.")
    if fields.has("bias") and fields.raw["bias"] != "none":
        raise fields.fail("bias", "'none'", remedy="Trained biases are not supported; merge the adapter with PEFT.")
    _check_init(fields)
    config = PeftConfig(
        lora=_lora_config(fields),
        targets=_targets(fields, "target_modules"),
        exclude=_targets(fields, "exclude_modules"),
        is_partial=bool(fields.raw.get("layers_to_transform")) or fields.raw.get("layers_to_transform") == 0,
        base_model=_base_model(fields),
    )
    for key, value in fields.raw.items():
        is_off = value is None or value is False or value in ("", [], {})
        if key not in fields.asked and key not in _NO_MATHS and not is_off:
            raise fields.fail(
                key, "null: it may change what the adapter computes", remedy="Merge the adapter with PEFT instead."
            )
    return config


def peft_config_json(lora: LoraConfig, targets: tuple[str, ...], base_model: str) -> str:
    """Returns the text of an adapter_config.json.

    Args:
      lora: Ranks, scales and kind. Its patterns refer to PEFT's module paths.
      targets: Endings of the module paths that are adapted.
      base_model: Directory or Hub id of the base, for PEFT to load it.
    """
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": list(targets),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": {pattern: _whole(alpha) for pattern, alpha in lora.alpha_pattern.items()},
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return json.dumps(fields, indent=2) + "\n"


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _read_object(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected the directory of a PEFT adapter, with {CONFIG_FILE}"
        ) from error
    if len(data) > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: more than {_MAX_JSON_BYTES} bytes; expected the config of an adapter")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); save the adapter again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; expected an object. Save the adapter again")
    return found


def _check_init(fields: ConfigFields) -> None:
    fields.has("init_lora_weights")
    init = fields.raw.get("init_lora_weights")
    if init is None or isinstance(init, bool) or init in _BASE_KEPT:
        return
    if isinstance(init, str) and init.startswith(_BASE_CHANGED):
        raise fields.fail(
            "init_lora_weights",
            "an adapter of the unchanged base; this one was initialized with a part of the base's own weights",
            remedy="Save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...); or save "
            "its changed base as a model, and set init_lora_weights to true.",
        )
    known = ", ".join(map(repr, (True, False, *_BASE_KEPT)))
    raise fields.fail("init_lora_weights", f"one of {known}", remedy="Its effect on the base is not known.")


def _lora_config(fields: ConfigFields) -> LoraConfig:
    dropout = fields.raw.get("lora_dropout") or 0.0
    fields.has("lora_dropout")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise fields.fail("lora_dropout", "a number", remedy="Fix the file.")
    ranks, alphas = _pattern(fields, "rank_pattern"), _pattern(fields, "alpha_pattern")
    whole = {pattern: rank for pattern, rank in ranks.items() if isinstance(rank, int)}
    if len(whole) != len(ranks):
        raise fields.fail("rank_pattern", "integers", remedy="Fix the file.")
    try:
        return LoraConfig(
            rank=fields.integer("r"),
            alpha=fields.number("lora_alpha", default=8.0),
            dropout=float(dropout),
            rank_pattern=whole,
            alpha_pattern={pattern: float(alpha) for pattern, alpha in alphas.items()},
            use_rslora=fields.boolean("use_rslora", default=False),
            use_dora=fields.boolean("use_dora", default=False),
        )
    except UnsupportedModelError:
        raise
    except ConfigError as error:
        raise UnsupportedModelError(f"{fields.source}: {error}") from error


def _pattern(fields: ConfigFields, key: str) -> dict[str, int | float]:
    value = fields.raw[key] if fields.has(key) else {}
    if not isinstance(value, dict):
        raise fields.fail(key, "an object of numbers by module", remedy="Fix the file.")
    for number in value.values():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise fields.fail(key, "an object of numbers by module", remedy="Fix the file.")
    return value


def _targets(fields: ConfigFields, key: str) -> tuple[str, ...] | str:
    value = fields.raw[key] if fields.has(key) else []
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise fields.fail(key, f"a regular expression ({error})", remedy="Fix the file.") from error
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise fields.fail(key, "a list of modules, or a regular expression", remedy="Fix the file.")
    return tuple(value)


def _base_model(fields: ConfigFields) -> str | None:
    value = fields.raw["base_model_name_or_path"] if fields.has("base_model_name_or_path") else None
    return value if isinstance(value, str) and value else None


def _names(targets: tuple[str, ...] | str, path: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)
