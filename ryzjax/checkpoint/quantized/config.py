"""Writes the `quantization_config` of a compressed-tensors checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ryzjax.qarray import QFormat

__all__ = ["compressed_tensors_config"]


def compressed_tensors_config(formats: Mapping[str, QFormat], plain: Iterable[str]) -> dict[str, object]:
    """Returns the `quantization_config` for `config.json`.

    Args:
      formats: Module name in the files -> its format: int4 or int8, without a permutation.
      plain: Names of the linear modules that are not quantized.
    """
    by_format: dict[QFormat, list[str]] = {}
    for module, format in formats.items():
        by_format.setdefault(format, []).append(module)
    groups: dict[str, object] = {}
    for i, (format, modules) in enumerate(by_format.items()):
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(by_format) == 1 else modules,
            "weights": _weights(format),
            "input_activations": _activations(format),
            "output_activations": None,
            "format": _name(format),
        }
    names = {_name(format) for format in by_format}
    return {
        "quant_method": "compressed-tensors",
        "format": names.pop() if len(names) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": list(plain),
        "kv_cache_scheme": None,
        "config_groups": groups,
    }


def _name(format: QFormat) -> str:
    return "int-quantized" if format.activations == "int8" else "pack-quantized"


def _weights(format: QFormat) -> dict[str, object]:
    return {
        "num_bits": 4 if format.kind == "int4" else 8,
        "type": "int",
        "symmetric": not format.has_zeros,
        "strategy": "channel" if format.group is None else "group",
        "group_size": format.group,
        "dynamic": False,
        "actorder": None,
    }


def _activations(format: QFormat) -> dict[str, object] | None:
    if format.activations is None:
        return None
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
