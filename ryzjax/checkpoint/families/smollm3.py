"""SmolLM 3."""

from __future__ import annotations

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families.base import HFConfig, HFFamily, hf_modules, layer_windows, shared_and_rope
from ryzjax.models.smollm3 import SmolLM3Config

__all__ = ["FAMILY"]


def _read(hf: HFConfig) -> SmolLM3Config:
    fields = hf.fields
    shared, rope = shared_and_rope(hf, theta=2e6, tie_embeddings=True)
    is_rope_layer = _rope_layers(fields, shared["num_layers"])
    fields.ignore("max_window_layers")
    if fields.boolean("use_sliding_window", default=False):
        windows, _ = layer_windows(fields, shared["num_layers"], is_sliding=lambda layer: not is_rope_layer[layer])
    else:
        fields.ignore("sliding_window", "layer_types")
        windows = (None,) * shared["num_layers"]
    return SmolLM3Config(
        rope=rope,
        is_rope_layer=is_rope_layer,
        windows=windows,
        attention_bias=fields.boolean("attention_bias", default=False),
        mlp_bias=fields.boolean("mlp_bias", default=False),
        **shared,
    )


def _rope_layers(fields: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    """Returns whether each layer has RoPE. Despite its name, `no_rope_layers` has a 1 for a layer with RoPE."""
    interval = fields.integer("no_rope_layer_interval", default=4)
    marks = fields.value("no_rope_layers")
    if marks is None:
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    if not isinstance(marks, list) or len(marks) < num_layers or any(mark not in (0, 1) for mark in marks):
        raise fields.fail("no_rope_layers", f"a list of 0 and 1 for {num_layers} layers", remedy="Fix the config.")
    return tuple(bool(mark) for mark in marks[:num_layers])


FAMILY = HFFamily(name="smollm3", architectures={"SmolLM3ForCausalLM": "smollm3"}, read=_read, weight=hf_modules())
