"""model_config_from_hf: builds a ModelConfig from Hugging Face's `config.json` and `generation_config.json`.

Vendors spell the same fields differently. All of their spellings are handled here and in `checkpoint.families`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families import HF_FAMILIES, HFConfig, HFFamily
from ryzjax.checkpoint.families.base import DType
from ryzjax.checkpoint.hf.keys import check_keys
from ryzjax.errors import ConfigError
from ryzjax.models.config import ModelConfig

__all__ = ["SUPPORTED_ARCHITECTURES", "model_config_from_hf", "text_model_config"]

_STORED_DTYPES: Mapping[str, DType] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
"""The dtype in memory under `--dtype auto`, by the stored dtype. float16 becomes bfloat16, which has the same size and
the range of float32."""

SUPPORTED_ARCHITECTURES: Mapping[str, HFFamily] = {
    architecture: family for family in HF_FAMILIES.values() for architecture in family.architectures
}
"""Hugging Face's architecture name -> the family that reads it."""

_OUTER_KEYS = ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
"""Keys of a multimodal config that are outside the text model's block and also apply to it."""


def model_config_from_hf(
    raw: Mapping[str, object],
    generation: Mapping[str, object] | None = None,
    *,
    dtype: str = "auto",
    source: str = "config.json",
) -> ModelConfig:
    """Reads a model's shape, maths and special token ids.

    Args:
      raw: The parsed `config.json`.
      generation: The parsed `generation_config.json`, if there is one. Its eos and bos ids take precedence.
      dtype: The dtype of weights in memory: "auto", "float32" or "bfloat16". "auto" takes the stored dtype, with
        bfloat16 in place of float16, and float32 if the config names none.
      source: Name of the config file, for error messages.

    Raises:
      UnsupportedModelError: The architecture is unknown, a field is missing or out of range, or a field changes the
        maths in a way that is not supported. An unknown field is refused too, since it may change the maths.
      ConfigError: `dtype` is none of the three.
    """
    outer = ConfigFields(raw=raw, source=source)
    architecture = _architecture(outer)
    family = SUPPORTED_ARCHITECTURES[architecture]
    fields = _text_fields(outer, family)
    fields = ConfigFields(raw={**family.defaults, **fields.raw}, source=fields.source)
    # `checkpoint.quantized` reads these together with the weights.
    fields.ignore("quantization_config", "compression_config")
    fields.ignore("architectures", "model_type", "dtype", "torch_dtype", "bos_token_id", "eos_token_id")
    config = family.read(HFConfig(fields=fields, generation=generation or {}, dtype=_dtype(fields, dtype)))
    check_keys(fields)
    return config


def text_model_config(raw: Mapping[str, object]) -> dict[str, object]:
    """Returns the config.json of the text model alone. The config of a model without other parts is returned unchanged.

    Args:
      raw: A parsed config.json that `model_config_from_hf` accepts.
    """
    outer = ConfigFields(raw=raw, source="config.json")
    architecture = _architecture(outer)
    family = SUPPORTED_ARCHITECTURES[architecture]
    fields = _text_fields(outer, family)
    if fields is outer:
        return dict(raw)
    alone = next(name for name in family.architectures if name != architecture)
    return {**fields.raw, "architectures": [alone], "model_type": family.architectures[alone]}


def _text_fields(outer: ConfigFields, family: HFFamily) -> ConfigFields:
    """Returns the text model's own fields if the architecture has other parts too, else all fields."""
    block = outer.block(family.text_config) if family.text_config else None
    if block is None:
        return outer
    shared = {key: outer.raw[key] for key in _OUTER_KEYS if outer.raw.get(key) is not None}
    return ConfigFields(raw={**block.raw, **shared}, source=block.source)


def _architecture(fields: ConfigFields) -> str:
    known = ", ".join(sorted(SUPPORTED_ARCHITECTURES))
    remedy = "Serve a model of a supported architecture."
    model_types = {arch: family.architectures[arch] for arch, family in SUPPORTED_ARCHITECTURES.items()}
    if fields.has("architectures"):
        names = fields.raw["architectures"]
        architecture = names[0] if isinstance(names, list) and len(names) == 1 else None
        if not isinstance(architecture, str) or architecture not in SUPPORTED_ARCHITECTURES:
            raise fields.fail("architectures", f"one of {known}", remedy=remedy)
        if fields.has("model_type") and fields.raw["model_type"] != model_types[architecture]:
            raise fields.fail("model_type", f"{model_types[architecture]!r} for {architecture}", remedy=remedy)
        return architecture
    for architecture, model_type in model_types.items():
        if fields.raw.get("model_type") == model_type:
            return architecture
    raise fields.fail("model_type", f"one of {', '.join(sorted(set(model_types.values())))}", remedy=remedy)


def _dtype(fields: ConfigFields, wanted: str) -> DType:
    if wanted == "float32" or wanted == "bfloat16":
        return wanted
    if wanted != "auto":
        raise ConfigError(f"dtype={wanted!r} is not supported; expected auto, float32 or bfloat16")
    # transformers 5 writes `dtype`, 4 writes `torch_dtype`.
    name = "dtype" if fields.has("dtype") else "torch_dtype"
    stored = fields.raw.get(name)
    if stored is None:
        return "float32"
    if not isinstance(stored, str) or stored.removeprefix("torch.") not in _STORED_DTYPES:
        raise fields.fail(
            name, f"one of {', '.join(_STORED_DTYPES)}", remedy="Set --dtype float32 or --dtype bfloat16."
        )
    return _STORED_DTYPES[stored.removeprefix("torch.")]
