"""Reads rotary embeddings from a Hugging Face config.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 writes `rope_parameters`. Both are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.layers.rope import DynamicRope, FactorRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope

__all__ = ["layer_ropes_from_hf", "rope_from_hf", "scaled_max_position"]

_PARAMETERS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "factors": frozenset({"factors"}),
    "longrope": frozenset(
        {"factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor"}
    ),
}
"""Supported rope types, and the parameters that each reads. "factors" is our own, for GGUF files (`gguf.config`)."""

_OLD_NAMES = {"su": "longrope"}
_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def rope_from_hf(
    fields: ConfigFields, *, head_dim: int, max_position: int, theta: float, yarn_is_longrope: bool = False
) -> Rope:
    """Reads the rotary embedding that all layers share.

    Args:
      fields: The config's fields.
      head_dim: Head dim of the config.
      max_position: Longest context of the config, in tokens.
      theta: The base if the config does not give one.
      yarn_is_longrope: Whether "yarn" means LongRoPE, as in old Phi-3 configs.

    Raises:
      UnsupportedModelError: The rope type is not supported, a parameter is missing, unknown or out of range, or the old
        and the new spelling disagree.
    """
    scaling = _scaling_block(fields)
    for key in _COMMON & {"rope_theta", "partial_rotary_factor"}:
        fields.ignore(key)
    theta = _agreed(fields, scaling, "rope_theta") or theta
    return _rope(fields, scaling, head_dim, max_position, theta, yarn_is_longrope=yarn_is_longrope)


def layer_ropes_from_hf(
    fields: ConfigFields,
    layer_types: Sequence[str],
    *,
    head_dim: int,
    max_position: int,
    theta: float,
    sliding_theta: float | None,
    sliding_theta_key: str | None,
) -> tuple[Rope, ...]:
    """Reads the rotary embedding of each layer, for models whose sliding layers have their own (Gemma 3, OLMo 3).

    In transformers 5 `rope_parameters` has one object for sliding layers and one for full layers. In transformers 4
    `rope_scaling` applies to the full layers only.

    Args:
      fields: The config's fields.
      layer_types: "sliding_attention" or "full_attention" for each layer.
      head_dim: Head dim of the config.
      max_position: Longest context of the config, in tokens.
      theta: The base of full layers if the config does not give one.
      sliding_theta: The base of sliding layers if the config does not give one; None for that of the full layers.
      sliding_theta_key: The key of that base in transformers 4; None if there was none.

    Raises:
      UnsupportedModelError: As in `rope_from_hf`.
    """
    fields.ignore("rope_theta", *([sliding_theta_key] if sliding_theta_key else []))
    theta = fields.number("rope_theta", default=theta)
    if sliding_theta is None:
        sliding_theta = theta
    if sliding_theta_key is not None:
        sliding_theta = fields.number(sliding_theta_key, default=sliding_theta)
    full = sliding = ConfigFields(raw={}, source=fields.source)
    block = _scaling_block(fields)
    if any(isinstance(value, Mapping) for value in block.raw.values()):
        full = block.block("full_attention") or full
        sliding = block.block("sliding_attention") or sliding
        for key in block.raw.keys() - {"full_attention", "sliding_attention"}:
            raise block.fail(key, "only full_attention and sliding_attention", remedy="It may change the maths.")
    else:
        full = block
    ropes = {
        name: _rope(fields, scaling, head_dim, max_position, scaling.number("rope_theta", default=default))
        for name, scaling, default in (
            ("full_attention", full, theta),
            ("sliding_attention", sliding, sliding_theta),
        )
    }
    return tuple(ropes[name] for name in layer_types)


def scaled_max_position(rope: Rope, max_position: int) -> int:
    """Returns the longest context in tokens, multiplied by the rope's scaling if the config gives the unscaled one."""
    if isinstance(rope, DynamicRope):
        return int(max_position * rope.factor)
    if isinstance(rope, YarnRope):
        return max(max_position, int(rope.original_max_position * rope.factor))
    return max_position


def _rope(
    fields: ConfigFields,
    scaling: ConfigFields,
    head_dim: int,
    max_position: int,
    theta: float,
    *,
    yarn_is_longrope: bool = False,
) -> Rope:
    rope_type = _rope_type(fields, scaling, yarn_is_longrope)
    for key, value in scaling.raw.items():
        if key not in _COMMON | _PARAMETERS[rope_type] and value is not None:
            raise scaling.fail(
                key,
                f"only {', '.join(sorted(_PARAMETERS[rope_type] | _COMMON))} for rope type {rope_type!r}",
                remedy="It may change the maths, so this model is refused.",
            )
    rotary_dim = _rotary_dim(fields, scaling, head_dim)
    if rope_type == "default":
        return Rope(theta=theta, rotary_dim=rotary_dim)
    if rope_type == "linear":
        return LinearRope(theta=theta, rotary_dim=rotary_dim, factor=scaling.number("factor"))
    if rope_type == "factors":
        factors = scaling.numbers("factors", length=rotary_dim // 2)
        return FactorRope(theta=theta, rotary_dim=rotary_dim, factors=factors)
    if rope_type == "dynamic":
        if rotary_dim < 4:
            raise scaling.fail("rope_type", "another type for a rotary dimension of 2", remedy="Fix the config.")
        factor = scaling.number("factor")
        return DynamicRope(theta=theta, rotary_dim=rotary_dim, factor=factor, original_max_position=max_position)
    original = _original_max_position(fields, scaling, max_position)
    if rope_type == "yarn":
        return _yarn(scaling, theta, rotary_dim, max_position, original)
    if rope_type == "longrope":
        return _longrope(scaling, theta, rotary_dim, max_position, original)
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.fail("low_freq_factor", f"less than high_freq_factor={high:g}", remedy="Fix the config.")
    return Llama3Rope(
        theta=theta,
        rotary_dim=rotary_dim,
        factor=scaling.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=original,
    )


def _yarn(scaling: ConfigFields, theta: float, rotary_dim: int, max_position: int, original: int) -> YarnRope:
    factor = scaling.number("factor", default=max_position / original)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.has("mscale") and scaling.has("mscale_all_dim"):
        attention_factor = magnitude(scaling.number("mscale")) / magnitude(scaling.number("mscale_all_dim"))
    else:
        attention_factor = magnitude(1.0)
    return YarnRope(
        theta=theta,
        rotary_dim=rotary_dim,
        factor=factor,
        original_max_position=original,
        beta_fast=scaling.number("beta_fast", default=32.0),
        beta_slow=scaling.number("beta_slow", default=1.0),
        attention_factor=scaling.number("attention_factor", default=attention_factor),
        truncate=scaling.boolean("truncate", default=True),
    )


def _longrope(scaling: ConfigFields, theta: float, rotary_dim: int, max_position: int, original: int) -> LongRope:
    factor = scaling.number("factor", default=max_position / original)
    attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(
        theta=theta,
        rotary_dim=rotary_dim,
        short_factor=scaling.numbers("short_factor", length=rotary_dim // 2),
        long_factor=scaling.numbers("long_factor", length=rotary_dim // 2),
        original_max_position=original,
        attention_factor=scaling.number("attention_factor", default=attention_factor),
    )


def _original_max_position(fields: ConfigFields, scaling: ConfigFields, max_position: int) -> int:
    """Reads the context before scaling, in tokens. Phi-3 has it beside the block, where it takes precedence."""
    inner = scaling.integer("original_max_position_embeddings", default=max_position)
    return fields.integer("original_max_position_embeddings", default=inner)


def _rotary_dim(fields: ConfigFields, scaling: ConfigFields, head_dim: int) -> int:
    factor = _agreed(fields, scaling, "partial_rotary_factor", high=1.0) or 1.0
    rotary_dim = int(head_dim * factor)
    if rotary_dim < 2 or rotary_dim % 2:
        where = scaling if scaling.has("partial_rotary_factor") else fields
        raise where.fail(
            "partial_rotary_factor",
            f"a share of head_dim={head_dim} that is an even number of features, at least 2",
            remedy="Fix the config.",
        )
    return rotary_dim


def _agreed(fields: ConfigFields, scaling: ConfigFields, key: str, *, high: float = math.inf) -> float | None:
    """Reads a number from the block or beside it. Both must agree; None if neither has it."""
    outer = fields.number(key, high=high) if fields.has(key) else None
    inner = scaling.number(key, high=high) if scaling.has(key) else None
    if outer is not None and inner is not None and outer != inner:
        raise scaling.fail(key, f"{outer:g}, as the outer {key} says", remedy="Keep one of the two.")
    return outer if inner is None else inner


def _scaling_block(fields: ConfigFields) -> ConfigFields:
    """Returns the block that describes the scaling; an empty one if there is none."""
    names = ("rope_parameters", "rope_scaling")
    blocks = {name: block for name in names if (block := fields.block(name)) is not None}
    if len(blocks) == 2 and blocks["rope_parameters"].raw != blocks["rope_scaling"].raw:
        raise fields.fail(
            "rope_scaling", "the same as rope_parameters, or absent", remedy="Keep one of the two in the config."
        )
    return next(iter(blocks.values()), ConfigFields(raw={}, source=f"{fields.source}: rope_scaling"))


def _rope_type(fields: ConfigFields, scaling: ConfigFields, yarn_is_longrope: bool) -> str:
    new, old = scaling.raw.get("rope_type"), scaling.raw.get("type")
    if new is not None and old is not None and new != old:
        raise scaling.fail("type", f"{new!r}, as rope_type says", remedy="Keep one of the two.")
    rope_type = new if new is not None else old
    if rope_type is None:
        if scaling.raw.keys() - {"rope_theta", "partial_rotary_factor"}:
            name = scaling.source.removeprefix(f"{fields.source}: ")
            raise fields.fail(name, "a rope_type", remedy="Add rope_type to it.")
        return "default"
    rope_type = _OLD_NAMES.get(cast("str", rope_type), rope_type) if isinstance(rope_type, str) else rope_type
    if rope_type == "yarn" and yarn_is_longrope:
        rope_type = "longrope"
    if not isinstance(rope_type, str) or rope_type not in _PARAMETERS:
        raise scaling.fail(
            "rope_type" if new is not None else "type",
            f"one of {', '.join(sorted(_PARAMETERS))}",
            remedy="Other RoPE scalings are not supported.",
        )
    return rope_type
