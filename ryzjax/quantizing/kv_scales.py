"""add_kv_scales: calibrates the scales of an fp8 KV cache on a quantized checkpoint, and adds them to its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.kv_scales import kv_cache_scheme, kv_scale_tensors
from ryzjax.checkpoint.safetensors_write import TensorToWrite, write_safetensors
from ryzjax.checkpoint.source import resolve_source
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.loading.model_config import read_model_config
from ryzjax.models.kv_cache import KVScales
from ryzjax.models.registry import family_of
from ryzjax.quantizing.kv_calibration import calibrate_kv_scales, observe_kv_maxima
from ryzjax.sharding import Placement

__all__ = ["add_kv_scales"]

_SHARD = "model-kv-scales.safetensors"
_MOST_SEQUENCES = 128


def add_kv_scales(
    folder: Path,
    placement: Placement,
    sequences: Sequence[np.ndarray],
    *,
    dtype: str = "auto",
    show_progress: bool = True,
) -> KVScales:
    """Runs a written checkpoint over text and adds the scales of its keys and values to it.

    Args:
      folder: The checkpoint, with config, index and shards, as `quantize` writes it.
      placement: The devices that hold the whole model, and the layout over them.
      sequences: Token ids, int32 [tokens] each. Only the first 128 sequences are used.
      dtype: The dtype that the model computes in; "auto" takes the checkpoint's.
      show_progress: Whether to show a progress bar on stderr.

    Returns:
      The scales.

    Raises:
      ConfigError: Keys or values are not finite.
    """
    source = resolve_source(str(folder))
    config = read_model_config(source, dtype=dtype)
    model = stored_model(source, config, placement)
    weights = load_weights(source, model)
    sequences = sequences[:_MOST_SEQUENCES]
    columns = TextColumn("Calibrating KV scales"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as bar:
        task = bar.add_task("kv", total=len(sequences))
        maxima = observe_kv_maxima(
            model, tuple(weights.values()), [ids.tolist() for ids in sequences], on_done=lambda: bar.advance(task)
        )
    scales = calibrate_kv_scales(maxima)
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    prefixes = HF_FAMILIES[family_of(config)].prefixes
    prefix = next(p for p in prefixes if f"{p}embed_tokens.weight" in index["weight_map"])
    tensors = kv_scale_tensors(scales, prefix)
    write_safetensors(folder / _SHARD, {name: TensorToWrite.of(tensor) for name, tensor in tensors.items()})
    index["weight_map"] |= dict.fromkeys(tensors, _SHARD)
    index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in tensors.values())
    index_path.write_text(json.dumps(index, indent=1), encoding="utf-8")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"]["kv_cache_scheme"] = kv_cache_scheme()
    (folder / "config.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
    return scales
