"""What the Qwen configs share: sliding windows that are there but switched off."""

from __future__ import annotations

from ryzjax.checkpoint.families.base import layer_windows
from ryzjax.checkpoint.hf.fields import ConfigFields

__all__ = ["qwen_windows"]


def qwen_windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """Window of each layer: None unless `use_sliding_window`; then from layer `max_window_layers` on."""
    if not fields.boolean("use_sliding_window", default=False):
        fields.ignore("sliding_window", "max_window_layers", "layer_types")
        return (None,) * num_layers
    first = fields.integer("max_window_layers", low=0)
    windows, _ = layer_windows(fields, num_layers, is_sliding=lambda layer: layer >= first)
    return windows
