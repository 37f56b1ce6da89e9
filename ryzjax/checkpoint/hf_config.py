"""ModelConfig from HF's `config.json` and `generation_config.json`: every quirk of the vendors' spelling ends here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from ryzjax.checkpoint.hf_fields import ConfigFields
from ryzjax.checkpoint.hf_keys import FIXED_KEYS, HARMLESS_KEYS, READ_KEYS
from ryzjax.checkpoint.hf_rope import rope_from_hf
from ryzjax.errors import ConfigError, UnsupportedModelError
from ryzjax.models.config import ModelConfig

__all__ = ["SUPPORTED_ARCHITECTURES", "model_config_from_hf"]

DType = Literal["float32", "bfloat16"]

_STORED_DTYPES: Mapping[str, DType] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
"""What `--dtype auto` makes of the dtype a checkpoint was stored in. float16 becomes bfloat16: same size, and the
range that float32 accumulation expects."""


def model_config_from_hf(
    raw: Mapping[str, object],
    generation: Mapping[str, object] | None = None,
    *,
    dtype: str = "auto",
    source: str = "config.json",
) -> ModelConfig:
    """Reads a model's shape and maths from the parsed `config.json`.

    Args:
      raw: the parsed `config.json`.
      generation: the parsed `generation_config.json`, if there is one; its eos and bos ids win.
      dtype: "auto" (as stored; float16 becomes bfloat16, a silent file float32), "float32" or "bfloat16".
      source: name of the file, for messages.

    Raises:
      UnsupportedModelError: an unknown architecture, a missing or out-of-range field, or a field that changes
        (or, being unknown, may change) the maths in a way that is not supported.
      ConfigError: `dtype` is none of the three.
    """
    fields = ConfigFields(raw=raw, source=source)
    build = SUPPORTED_ARCHITECTURES[_architecture(fields)]
    return build(fields, generation, _dtype(fields, dtype))


def _architecture(fields: ConfigFields) -> str:
    known = ", ".join(sorted(SUPPORTED_ARCHITECTURES))
    remedy = "Serve a model of a supported architecture."
    if fields.has("architectures"):
        names = fields.raw["architectures"]
        architecture = names[0] if isinstance(names, list) and len(names) == 1 else None
        if not isinstance(architecture, str) or architecture not in SUPPORTED_ARCHITECTURES:
            raise fields.fail("architectures", f"one of {known}", remedy=remedy)
        if fields.has("model_type") and fields.raw["model_type"] != _MODEL_TYPES[architecture]:
            raise fields.fail("model_type", f"{_MODEL_TYPES[architecture]!r} for {architecture}", remedy=remedy)
        return architecture
    for architecture, model_type in _MODEL_TYPES.items():
        if fields.raw.get("model_type") == model_type:
            return architecture
    raise fields.fail("model_type", f"one of {', '.join(sorted(_MODEL_TYPES.values()))}", remedy=remedy)


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
            name, f"one of {', '.join(_STORED_DTYPES)}", remedy="Choose with --dtype float32 or --dtype bfloat16."
        )
    return _STORED_DTYPES[stored.removeprefix("torch.")]


def _llama(fields: ConfigFields, generation: Mapping[str, object] | None, dtype: DType) -> ModelConfig:
    """Llama 2, 3.x, SmolLM, TinyLlama."""
    _check_keys(fields)
    if fields.raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.fail("hidden_act", "'silu'", remedy="Other activations are not supported for Llama.")
    vocab_size = fields.integer("vocab_size", high=2**24)
    hidden_size = fields.integer("hidden_size", high=2**20)
    num_layers = fields.integer("num_hidden_layers", high=2**12)
    num_heads = fields.integer("num_attention_heads", high=2**14)
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads, high=2**14)
    if num_heads % num_kv_heads:
        raise fields.fail(
            "num_key_value_heads", f"a divisor of num_attention_heads={num_heads}", remedy="Fix the config."
        )
    _check_layer_types(fields, num_layers)
    eos_token_ids, bos_token_id = _special_ids(fields, generation, vocab_size)
    return ModelConfig(
        family="llama",
        dtype=dtype,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", high=2**24),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(fields, hidden_size, num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", high=1.0),
        rope=rope_from_hf(fields),
        max_position=fields.integer("max_position_embeddings"),
        tie_embeddings=fields.boolean("tie_word_embeddings", default=False),
        attention_bias=fields.boolean("attention_bias", default=False),
        mlp_bias=fields.boolean("mlp_bias", default=False),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
    )


def _check_keys(fields: ConfigFields) -> None:
    for key, value in fields.raw.items():
        if key in READ_KEYS or key in HARMLESS_KEYS:
            continue
        if key not in FIXED_KEYS:
            raise fields.fail(
                key,
                "a key that is known for this architecture",
                remedy="It may change the maths, so the model is refused; remove the key if you know it does not.",
            )
        if not any(type(value) is type(allowed) and value == allowed for allowed in FIXED_KEYS[key]):
            allowed = " or ".join(repr(v) for v in FIXED_KEYS[key])
            raise fields.fail(key, allowed, remedy="Other values are not supported for this architecture.")


def _check_layer_types(fields: ConfigFields, num_layers: int) -> None:
    if fields.has("layer_types") and fields.raw["layer_types"] != ["full_attention"] * num_layers:
        raise fields.fail(
            "layer_types",
            f"'full_attention' {num_layers} times (num_hidden_layers)",
            remedy="Sliding-window and linear attention layers are not supported.",
        )


def _head_dim(fields: ConfigFields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.fail(
            "hidden_size",
            f"a multiple of num_attention_heads={num_heads} where head_dim is not given",
            remedy="Add head_dim to the config.",
        )
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads, high=2**12)
    if head_dim % 2:
        raise UnsupportedModelError(
            f"{fields.source}: head_dim is {head_dim}; expected an even number: RoPE rotates pairs. Fix the config."
        )
    return head_dim


def _special_ids(
    fields: ConfigFields, generation: Mapping[str, object] | None, vocab_size: int
) -> tuple[tuple[int, ...], int | None]:
    """(eos ids, bos id): generation_config's where it has them, else config's."""
    from_generation = ConfigFields(raw=generation or {}, source="generation_config.json")

    def first(field: str) -> tuple[int, ...]:
        return from_generation.token_ids(field, vocab_size=vocab_size) or fields.token_ids(field, vocab_size=vocab_size)

    bos = first("bos_token_id")
    return first("eos_token_id"), bos[0] if bos else None


SUPPORTED_ARCHITECTURES: Mapping[str, Callable[[ConfigFields, Mapping[str, object] | None, DType], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
}
"""HF's architecture name -> the function that reads its config."""

_MODEL_TYPES = {"LlamaForCausalLM": "llama"}
