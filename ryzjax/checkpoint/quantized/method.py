"""quant_method: reads how a checkpoint is quantized from its config, and which tensors make up a quantized matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.quantized.awq import AwqMatrix
from ryzjax.checkpoint.quantized.bitsandbytes import Bnb4Matrix, Bnb8Matrix
from ryzjax.checkpoint.quantized.compressed_tensors import IntMatrix, PackedMatrix
from ryzjax.checkpoint.quantized.gptq import GptqMatrix
from ryzjax.checkpoint.quantized.stored_matrix import StoredMatrix
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.errors import CheckpointError

__all__ = ["QuantMethod", "quant_method"]

FileOf = Mapping[str, TensorFile]
_REMEDY = "Use the model in another format, or unquantized."


@dataclass(frozen=True, kw_only=True)
class QuantMethod:
    """How a checkpoint is quantized.

    Attributes:
      name: Name of the method in the config.
      matrix: Function of (tensor name -> file, module name in the files, names of the module's tensors, (N, K)) that
        returns the quantized matrix, or None if the module is not quantized.
      ignored: Name endings of tensors that a reader does not need.
    """

    name: str
    matrix: Callable[[FileOf, str, tuple[str, ...], tuple[int, int]], StoredMatrix | None]
    ignored: tuple[str, ...] = ()


def quant_method(source: CheckpointSource) -> QuantMethod | None:
    """Reads how a checkpoint is quantized from its config; None if it is not quantized.

    The config is `quantization_config` in config.json, or AutoGPTQ's quantize_config.json.

    Raises:
      UnsupportedModelError: The method, or a variant of it, is not supported.
      CheckpointError: quantize_config.json is not a JSON object.
    """
    outer = ConfigFields(raw=source.config, source=source.config_name)
    fields = outer.block("quantization_config") or outer.block("compression_config")
    if fields is None:
        fields = _gptq_file(source)
    if fields is None:
        return None
    name = fields.value("quant_method") or fields.value("method")
    if name is None and fields.has("load_in_4bit"):
        name = "bitsandbytes"
    if name is None and fields.has("bits"):  # quantize_config.json of AutoGPTQ
        name = "gptq"
    if name == "mxfp4":
        return None  # the experts of GPT-OSS, which `families.gpt_oss` reads
    readers: Mapping[object, Callable[[ConfigFields], QuantMethod]] = {
        "gptq": _gptq,
        "awq": _awq,
        "compressed-tensors": _compressed_tensors,
        "fp8": _fp8,
        "fbgemm_fp8": _fp8,
        "bitsandbytes": _bitsandbytes,
    }
    if name not in readers:
        raise fields.fail("quant_method", f"one of {', '.join(map(str, readers))}", remedy=_REMEDY)
    return readers[name](fields)


def _gptq_file(source: CheckpointSource) -> ConfigFields | None:
    path = source.directory / "quantize_config.json"
    if source.weight_format != "safetensors" or not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}; expected an object")
    return ConfigFields(raw=raw, source=str(path))


def _gptq(fields: ConfigFields) -> QuantMethod:
    """Of the overrides in `dynamic`, only `sym` is read.

    Bits and groups follow from the shapes, and a module that is not quantized has a plain weight.
    """
    label = fields.value("checkpoint_format") or fields.value("format") or "gptq"
    if label not in ("gptq", "gptq_v2"):
        raise fields.fail("checkpoint_format", "'gptq' or 'gptq_v2'", remedy=_REMEDY)
    if fields.value("pack_dtype") not in (None, "int32"):
        raise fields.fail("pack_dtype", "'int32'", remedy=_REMEDY)
    bits = fields.integer("bits", default=4)
    if bits not in (4, 8):
        raise fields.fail("bits", "4 or 8", remedy=_REMEDY)
    is_symmetric = fields.boolean("sym", default=True)
    overrides = fields.block("dynamic")
    symmetric_of = _overrides(overrides, "sym", is_symmetric)

    def matrix(file_of: FileOf, base: str, names: tuple[str, ...], shape: tuple[int, int]) -> StoredMatrix | None:
        if f"{base}.qweight" not in file_of:
            return None
        return GptqMatrix(file_of, base, names, shape, is_v2=label == "gptq_v2", is_symmetric=symmetric_of(base))

    return QuantMethod(name="gptq", matrix=matrix)


def _overrides(block: ConfigFields | None, key: str, default: bool) -> Callable[[str], bool]:
    """Returns module name -> a setting that `dynamic` (regular expression -> settings) may override.

    The first expression that matches a module counts.
    """
    rules: list[tuple[re.Pattern[str], object]] = []
    for pattern, settings in (block.raw if block is not None else {}).items():
        try:
            compiled = re.compile(pattern.removeprefix("+:").removeprefix("-:"))
        except re.error as error:
            assert block is not None
            raise block.fail(pattern, "a regular expression", remedy=f"It is not valid ({error}).") from error
        rules.append((compiled, settings.get(key, default) if isinstance(settings, dict) else default))

    def setting(module: str) -> bool:
        return next((bool(value) for pattern, value in rules if pattern.match(module)), default)

    return setting


def _awq(fields: ConfigFields) -> QuantMethod:
    if fields.integer("bits", default=4) != 4:
        raise fields.fail("bits", "4", remedy=_REMEDY)
    version = fields.value("version")
    if not isinstance(version, str | None) or (version or "gemm").lower() != "gemm":
        raise fields.fail("version", "'gemm'", remedy=_REMEDY)

    def matrix(file_of: FileOf, base: str, names: tuple[str, ...], shape: tuple[int, int]) -> StoredMatrix | None:
        return AwqMatrix(file_of, base, names, shape) if f"{base}.qweight" in file_of else None

    return QuantMethod(name="awq", matrix=matrix)


def _compressed_tensors(fields: ConfigFields) -> QuantMethod:
    for key in ("sparsity_config", "transform_config"):
        block = fields.block(key)
        if block is not None and block.raw and block.value("format") not in ("dense",):
            raise fields.fail(key, "none, or dense", remedy=_REMEDY)
    if fields.value("quantization_status") not in (None, "compressed"):
        raise fields.fail("quantization_status", "'compressed'", remedy="Save the model with save_compressed=True.")
    groups = fields.block("config_groups")
    formats = {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"}
    outer = fields.value("format")
    if outer is not None and outer not in formats:
        raise fields.fail("format", f"one of {', '.join(sorted(formats))}", remedy=_REMEDY)
    settings: list[ConfigFields] = []
    for name in groups.raw if groups is not None else ():
        assert groups is not None
        group = groups.block(name)
        if group is None:
            continue
        if group.value("format") is not None and group.value("format") not in formats:
            raise group.fail("format", f"one of {', '.join(sorted(formats))}", remedy=_REMEDY)
        settings.append(group)

    def matrix(file_of: FileOf, base: str, names: tuple[str, ...], shape: tuple[int, int]) -> StoredMatrix | None:
        if f"{base}.weight_packed" in file_of:
            return PackedMatrix(file_of, base, names, shape)
        weight = file_of.get(f"{base}.weight")
        if weight is None or weight.entries[f"{base}.weight"].dtype_name not in ("I8", "F8_E4M3"):
            return None
        group = _group_of(base, settings)
        weights = group.block("weights") if group is not None else None
        activations = group.block("input_activations") if group is not None else None
        block = weights.value("block_structure") if weights is not None else None
        is_int8 = activations is not None and activations.value("type") == "int" and activations.value("num_bits") == 8
        return IntMatrix(
            file_of,
            base,
            names,
            shape,
            block=(block[0], block[1]) if isinstance(block, list) and len(block) == 2 else None,
            int8_activations=is_int8,
        )

    return QuantMethod(name="compressed-tensors", matrix=matrix, ignored=(".weight_shape", ".input_scale"))


def _group_of(module: str, groups: list[ConfigFields]) -> ConfigFields | None:
    """Returns the group that targets a module. A name or regular expression takes precedence over a class."""
    by_class = None
    for group in groups:
        targets = group.value("targets")
        for target in targets if isinstance(targets, list) else ():
            if not isinstance(target, str):
                continue
            if target == module or (target.startswith("re:") and re.match(target[3:], module)):
                return group
            if target == "Linear":
                by_class = by_class or group
    return by_class


def _fp8(fields: ConfigFields) -> QuantMethod:
    """Hugging Face's own fp8 format, with blocks, and FBGEMM's, with one scale a row."""
    size = fields.value("weight_block_size")
    block = (size[0], size[1]) if isinstance(size, list) and len(size) == 2 else None

    def matrix(file_of: FileOf, base: str, names: tuple[str, ...], shape: tuple[int, int]) -> StoredMatrix | None:
        for scale in ("weight_scale_inv", "weight_scale"):
            if f"{base}.{scale}" in file_of:
                return IntMatrix(file_of, base, names, shape, scale=scale, block=block)
        return None

    return QuantMethod(name="fp8", matrix=matrix, ignored=(".input_scale", ".input_scale_ub", ".activation_scale"))


def _bitsandbytes(fields: ConfigFields) -> QuantMethod:
    def matrix(file_of: FileOf, base: str, names: tuple[str, ...], shape: tuple[int, int]) -> StoredMatrix | None:
        if f"{base}.weight.absmax" in file_of:
            return Bnb4Matrix(file_of, base, names, shape)
        return Bnb8Matrix(file_of, base, names, shape) if f"{base}.SCB" in file_of else None

    return QuantMethod(name="bitsandbytes", matrix=matrix, ignored=(".weight_format",))
