"""Calibrated scales of an fp8 KV cache, as compressed-tensors stores them beside the weights.

model.layers.N.self_attn.k_scale    float, one number or one a KV head: key = float8 * scale
model.layers.N.self_attn.v_scale    the same of values
config.json                         quantization_config.kv_cache_scheme says what they are of
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing

import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.hf.fields import ConfigFields
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.dims import Float32Array
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.models.config import ModelConfig
from ryzjax.models.kv_cache import KVScales
from ryzjax.models.registry import family_of

__all__ = ["KV_SCALE_ENDINGS", "fp8_kv_scales", "kv_cache_scheme", "kv_scale_tensors", "read_kv_scales"]

KV_SCALE_ENDINGS = (".self_attn.k_scale", ".self_attn.v_scale")
"""Of the tensors that hold scales; no weight is made of them."""

_TENSOR = re.compile(r"(?:.*\.)?layers\.(\d+)\.self_attn\.([kv])_scale")
_DTYPES = ("F32", "BF16", "F16", "F64")
_UNIT = "or take 1.0 for all of them on purpose with --kv-scale-unit (kv_scale_unit=True)"


def kv_scale_tensors(scales: KVScales, prefix: str = "model.") -> dict[str, Float32Array]:
    """The tensors to store: one of [kv_heads] a layer for keys and one for values.

    Args:
      prefix: what stands before "layers." in the checkpoint.
    """
    return {
        f"{prefix}layers.{layer}.self_attn.{name}_scale": np.ascontiguousarray(of_layer, np.float32)
        for name, of_model in scales._asdict().items()
        for layer, of_layer in enumerate(of_model)
    }


def kv_cache_scheme() -> dict[str, object]:
    """What `quantization_config.kv_cache_scheme` says of those tensors."""
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
    """The scales in a checkpoint's safetensors files; None where there are none.

    One number a layer is taken for all its KV heads.

    Raises:
      CheckpointError: a layer lacks one, a shape or dtype is neither of the two, or a value is not more than zero.
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
    """The scales to serve an fp8 cache with.

    Args:
      unit: 1.0 everywhere, on purpose; what is stored is not looked at.

    Raises:
      ConfigError: there are none, all are 1.0, or they are of another kind of cache.
      CheckpointError: as `read_kv_scales`.
    """
    if unit:
        ones = np.ones((config.num_layers, config.num_kv_heads), np.float32)
        return KVScales(k=ones, v=ones)
    _check_scheme(source)
    scales = read_kv_scales(source, config)
    if scales is None:
        raise ConfigError(
            f"kv_dtype=fp8_e4m3, but {source.name} has no k_scale and v_scale tensors; serve safetensors that were "
            f"calibrated for an fp8 KV cache, take kv_dtype=int8, which needs no calibration, {_UNIT}"
        )
    if all(np.all(scale == 1.0) for scale in scales):
        raise ConfigError(
            f"kv_dtype=fp8_e4m3, but all k_scale and v_scale tensors of {source.name} are 1.0: a placeholder, which "
            f"costs quality; calibrate the checkpoint, take kv_dtype=int8, {_UNIT}"
        )
    return scales


def _read(file: SafetensorsFile, name: str, num_kv_heads: int) -> Float32Array:
    """float32 [kv_heads] of a stored scale."""
    entry = file.entries[name]
    size = int(np.prod(entry.shape))
    # One number, or one a head with axes of 1 around it: [], [1], [H], [H, 1, 1].
    if max(entry.shape, default=1) != size or size not in (1, num_kv_heads) or entry.dtype_name not in _DTYPES:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} is {entry.dtype_name} {list(entry.shape)}; expected one float or "
            f"[{num_kv_heads}] of them, one a KV head. Calibrate again."
        )
    values = np.empty(entry.shape, np.float32)
    file.read(name, (slice(None),) * len(entry.shape), values)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise CheckpointError(
            f"{file.path}: tensor {name!r} has {values.min()} and {values.max()} in it; expected scales that are "
            "finite and more than zero. Calibrate again."
        )
    return np.broadcast_to(values.reshape(-1), (num_kv_heads,)).copy()


def _check_scheme(source: CheckpointSource) -> None:
    """Refuses scales that the config says are of another format."""
    outer = ConfigFields(raw=source.config, source=source.config_name)
    fields = outer.block("quantization_config") or outer.block("compression_config")
    scheme = fields.block("kv_cache_scheme") if fields is not None else None
    if scheme is None:
        return
    wanted: Mapping[str, object] = {"type": "float", "num_bits": 8, "dynamic": False, "symmetric": True}
    for key, value in wanted.items():
        if scheme.value(key) not in (None, value):
            raise scheme.fail(key, repr(value), remedy=f"The stored scales are not of an e4m3 cache; {_UNIT[3:]}.")
