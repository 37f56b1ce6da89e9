"""RopeConfig from an HF config: `rope_theta` and `rope_scaling` (transformers 4), or `rope_parameters` (5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ryzjax.checkpoint.hf_fields import ConfigFields
from ryzjax.models.config import RopeConfig

__all__ = ["rope_from_hf"]

_DEFAULT_THETA = 10000.0
"""What transformers' LlamaConfig takes where the file is silent, as the first Llama 2 files are."""

_PARAMETERS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}
"""Supported rope types, and the parameters each one reads."""

_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def rope_from_hf(fields: ConfigFields) -> RopeConfig:
    """Reads the rotary embedding of a whole config.

    Raises:
      UnsupportedModelError: an unsupported rope type, a missing, unknown or out-of-range parameter, or old and
        new spellings that disagree.
    """
    name, scaling = _scaling_block(fields)
    theta = _theta(fields, scaling)
    rope_type = _rope_type(fields, name, scaling)
    for key, value in scaling.raw.items():
        if key not in _COMMON | _PARAMETERS[rope_type] and value is not None:
            raise scaling.fail(
                key,
                f"only {', '.join(sorted(_PARAMETERS[rope_type] | _COMMON))} for rope type {rope_type!r}",
                remedy="It may change the maths, so this model is refused.",
            )
    if scaling.number("partial_rotary_factor", default=1.0) != 1.0:
        raise scaling.fail("partial_rotary_factor", "1.0", remedy="Rotating part of a head is not supported.")
    if rope_type == "default":
        return RopeConfig(theta=theta)
    if rope_type == "linear":
        return RopeConfig(theta=theta, scaling="linear", factor=scaling.number("factor"))
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.fail("low_freq_factor", f"less than high_freq_factor={high:g}", remedy="Fix the config.")
    return RopeConfig(
        theta=theta,
        scaling="llama3",
        factor=scaling.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=scaling.integer("original_max_position_embeddings"),
    )


def _scaling_block(fields: ConfigFields) -> tuple[str, ConfigFields]:
    """The one block that describes the scaling, empty where there is none."""
    present = [name for name in ("rope_parameters", "rope_scaling") if fields.has(name)]
    for name in present:
        if not isinstance(fields.raw[name], Mapping):
            raise fields.fail(name, "an object or null", remedy="Fix the config.")
    if len(present) == 2 and fields.raw["rope_parameters"] != fields.raw["rope_scaling"]:
        raise fields.fail(
            "rope_scaling", "the same as rope_parameters, or absent", remedy="Keep one of the two in the config."
        )
    name = present[0] if present else "rope_scaling"
    raw = cast("Mapping[str, object]", fields.raw[name]) if present else {}
    return name, ConfigFields(raw=raw, source=f"{fields.source}: {name}")


def _theta(fields: ConfigFields, scaling: ConfigFields) -> float:
    outer = fields.number("rope_theta") if fields.has("rope_theta") else None
    inner = scaling.number("rope_theta") if scaling.has("rope_theta") else None
    if outer is not None and inner is not None and outer != inner:
        raise scaling.fail("rope_theta", f"{outer:g}, as the outer rope_theta says", remedy="Keep one of the two.")
    if inner is not None:
        return inner
    return _DEFAULT_THETA if outer is None else outer


def _rope_type(fields: ConfigFields, name: str, scaling: ConfigFields) -> str:
    new, old = scaling.raw.get("rope_type"), scaling.raw.get("type")
    if new is not None and old is not None and new != old:
        raise scaling.fail("type", f"{new!r}, as rope_type says", remedy="Keep one of the two.")
    rope_type = new if new is not None else old
    if rope_type is None:
        if scaling.raw.keys() - {"rope_theta", "partial_rotary_factor"}:
            raise fields.fail(name, "a rope_type", remedy="Add rope_type to it.")
        return "default"
    if not isinstance(rope_type, str) or rope_type not in _PARAMETERS:
        raise scaling.fail(
            "rope_type" if new is not None else "type",
            f"one of {', '.join(sorted(_PARAMETERS))}",
            remedy="Other RoPE scalings (yarn, dynamic, longrope) are not supported yet.",
        )
    return rope_type
