"""Config fields that the Qwen families share: sliding windows, which most configs list but switch off."""

from __future__ import annotations

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families.base import layer_windows

__all__ = ["qwen_windows"]


def qwen_windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """Reads the window of each layer in tokens.

    It is None unless `use_sliding_window` is set. Then layers from `max_window_layers` on have a window.
    """
    if not fields.boolean("use_sliding_window", default=False):
        fields.ignore("sliding_window", "max_window_layers", "layer_types")
        return (None,) * num_layers
    first = fields.integer("max_window_layers", low=0)
    windows, _ = layer_windows(fields, num_layers, is_sliding=lambda layer: layer >= first)
    return windows
