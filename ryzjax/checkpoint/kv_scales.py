"""Reads and names the calibrated scales of an fp8 KV cache, which compressed-tensors stores beside the weights.

model.layers.N.self_attn.k_scale    float, one number or one per KV head: key = float8 * scale
model.layers.N.self_attn.v_scale    the same for values
config.json                         quantization_config.kv_cache_scheme describes their format
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing

import numpy as np

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.dims import Float32Array
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVScales
from ryzjax.models.registry import family_of

__all__ = ["KV_SCALE_ENDINGS", "fp8_kv_scales", "kv_cache_scheme", "kv_scale_tensors", "read_kv_scales"]

KV_SCALE_ENDINGS = (".self_attn.k_scale", ".self_attn.v_scale")
"""Name endings of the tensors that hold scales. They belong to no weight."""

_TENSOR = re.compile(r"(?:.*\.)?layers\.(\d+)\.self_attn\.([kv])_scale")
_DTYPES = ("F32", "BF16", "F16", "F64")
_UNIT = "or set all scales to 1.0 with --kv-scale-unit (kv_scale_unit=True)"


def kv_scale_tensors(scales: KVScales, prefix: str = "model.") -> dict[str, Float32Array]:
    """Returns tensor name -> float32 [H], for the keys and for the values of each layer.

    Args:
      scales: The scales of the model, [L, H] each.
      prefix: The text before "layers." in the checkpoint's tensor names.
    """
    return {
        f"{prefix}layers.{layer}.self_attn.{name}_scale": np.ascontiguousarray(of_layer, np.float32)
        for name, of_model in scales._asdict().items()
        for layer, of_layer in enumerate(of_model)
    }


def kv_cache_scheme() -> dict[str, object]:
    """Returns the value of `quantization_config.kv_cache_scheme` for the tensors of `kv_scale_tensors`."""
    return {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "strategy": "attn_head",
        "dynamic": False,
        "group_size": None,
        "block_structure": None,
        "actorder": None,
    }


def read_kv_scales(source: CheckpointSource, config: ModelConfig) -> KVScales | None:
    """Reads the scales in a checkpoint's safetensors files; None if there are none.

    A layer with a single number uses it for all its KV heads.

    Raises:
      CheckpointError: A layer has no scale, a tensor has another shape or dtype, or a value is not above zero.
    """
    if source.weight_format != "safetensors":
        return None
    found: dict[str, dict[int, Float32Array]] = {"k": {}, "v": {}}
    other_parts = HF_FAMILIES[family_of(config)].ignored
    for path in source.weight_files:
        with closing(SafetensorsFile(path)) as file:
            for name in file.entries:
                match = _TENSOR.fullmatch(name)
                if match is not None and not name.startswith(other_parts):
                    found[match[2]][int(match[1])] = _read(file, name, config.num_kv_heads)
    if not found["k"] and not found["v"]:
        return None
    for name, layers in found.items():
        wrong = sorted(layers.keys() ^ set(range(config.num_layers)))
        if wrong:
            raise CheckpointError(
                f"{source.path}: layer {wrong[0]} {'has a' if wrong[0] in layers else 'has no'} {name}_scale; expected "
                f"one for keys and one for values in each of {config.num_layers} layers. Calibrate again."
            )
    return KVScales(*(np.stack([found[name][layer] for layer in range(config.num_layers)]) for name in ("k", "v")))


def fp8_kv_scales(source: CheckpointSource, config: ModelConfig, *, unit: bool) -> KVScales:
    """Returns the scales for serving with an fp8 KV cache.

    Args:
      source: The checkpoint's files.
      config: The model's config.
      unit: Whether to use 1.0 for every head and to ignore what is stored.

    Raises:
      ConfigError: The checkpoint has no scales, all of them are 1.0, or they belong to another kind of cache.
      CheckpointError: A stored scale is missing or invalid; see `read_kv_scales`.
    """
    if unit:
        ones = np.ones((config.num_layers, config.num_kv_heads), np.float32)
        return KVScales(k=ones, v=ones)
    _check_scheme(source)
    scales = read_kv_scales(source, config)
    if scales is None:
        raise ConfigError(
            f"kv_dtype=fp8_e4m3, but {source.name} has no k_scale and v_scale tensors; serve safetensors that were "
            f"calibrated for an fp8 KV cache, use kv_dtype=int8, which needs no calibration, {_UNIT}"
        )
    if all(np.all(scale == 1.0) for scale in scales):
        raise ConfigError(
            f"kv_dtype=fp8_e4m3, but all k_scale and v_scale tensors of {source.name} are 1.0: a placeholder, which "
            f"costs quality; calibrate the checkpoint, use kv_dtype=int8, {_UNIT}"
        )
    return scales


def _read(file: SafetensorsFile, name: str, num_kv_heads: int) -> Float32Array:
    """Reads one stored scale tensor as float32 [H]."""
    entry = file.entries[name]
    size = int(np.prod(entry.shape))
    # One number, or one per head with further axes of size 1: [], [1], [H], [H, 1, 1].
    if max(entry.shape, default=1) != size or size not in (1, num_kv_heads) or entry.dtype_name not in _DTYPES:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} is {entry.dtype_name} {list(entry.shape)}; expected one float, or "
            f"[{num_kv_heads}] floats, one per KV head. Calibrate again."
        )
    values = np.empty(entry.shape, np.float32)
    file.read(name, (slice(None),) * len(entry.shape), values)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise CheckpointError(
            f"{file.path}: tensor {name!r} has values from {values.min()} to {values.max()}; expected finite scales "
            "above zero. Calibrate again."
        )
    return np.broadcast_to(values.reshape(-1), (num_kv_heads,)).copy()


def _check_scheme(source: CheckpointSource) -> None:
    """Refuses scales that the config describes as another format than float8 e4m3."""
    outer = ConfigFields(raw=source.config, source=source.config_name)
    fields = outer.block("quantization_config") or outer.block("compression_config")
    scheme = fields.block("kv_cache_scheme") if fields is not None else None
    if scheme is None:
        return
    wanted: Mapping[str, object] = {"type": "float", "num_bits": 8, "dynamic": False, "symmetric": True}
    for key, value in wanted.items():
        if scheme.value(key) not in (None, value):
            raise scheme.fail(
                key, repr(value), remedy=f"The stored scales do not belong to an e4m3 cache; {_UNIT[3:]}."
            )
