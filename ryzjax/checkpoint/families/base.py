"""HFFamily: how Hugging Face spells the config and the weights of a family. It also has what most families share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.families.rope import rope_from_hf, scaled_max_position
from ryzjax.checkpoint.stored_weight import StoredWeight, WholeTensors
from ryzjax.errors import ConfigError
from ryzjax.layers.rope import Rope
from ryzjax.models.config import ModelConfig

__all__ = [
    "LAYER_MODULES",
    "DType",
    "HFConfig",
    "HFFamily",
    "SharedFields",
    "check_silu",
    "expert_stack",
    "hf_modules",
    "layer_windows",
    "optional_window",
    "shared_and_rope",
    "shared_fields",
]

DType = Literal["float32", "bfloat16"]

LAYER_MODULES: Mapping[str, str] = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""Our name of a module in a layer -> Hugging Face's name in Llama, and in most families after it."""

_OUTER_MODULES = {"embed": "{prefix}embed_tokens", "final_norm": "{prefix}norm", "lm_head": "lm_head"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """A config to read.

    Attributes:
      fields: The fields of `config.json`, or of its text part.
      generation: The parsed `generation_config.json`; empty if there is none. Its token ids take precedence.
      dtype: The dtype of weights in memory.
    """

    fields: ConfigFields
    generation: Mapping[str, object]
    dtype: DType


@dataclass(frozen=True, kw_only=True)
class HFFamily:
    """How Hugging Face spells a family.

    Attributes:
      name: The family's key in `models.registry.FAMILIES`.
      architectures: Hugging Face architecture -> its `model_type`.
      read: Builds the family's config from Hugging Face's.
      weight: (our weight name, config, prefix of the text model, names in the files) -> where the weight is stored.
      defaults: The values that transformers takes for keys that the config does not have.
      text_config: The key of the text model's block in multimodal architectures; None without such architectures.
      prefixes: The texts that may precede "layers.0" in tensor names. The first is the usual one.
      ignored: Prefixes of tensors that belong to other parts of a multimodal model.
    """

    name: str
    architectures: Mapping[str, str]
    read: Callable[[HFConfig], ModelConfig]
    weight: Callable[[str, ModelConfig, str, frozenset[str]], StoredWeight]
    defaults: Mapping[str, object] = field(default_factory=dict)
    text_config: str | None = None
    prefixes: tuple[str, ...] = ("model.",)
    ignored: tuple[str, ...] = ()


def hf_modules(
    modules: Mapping[str, str] = LAYER_MODULES,
) -> Callable[[str, ModelConfig, str, frozenset[str]], StoredWeight]:
    """Returns `HFFamily.weight` for a family that stores each of our weights as one tensor.

    Args:
      modules: Our name of a module in a layer -> Hugging Face's name.
    """

    def weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
        module, _, leaf = name.rpartition(".")
        if module in _OUTER_MODULES:
            return WholeTensors((f"{_OUTER_MODULES[module].format(prefix=prefix)}.{leaf}",))
        match = _LAYER.fullmatch(module)
        if match is not None and match[2] in modules:
            return WholeTensors((f"{prefix}layers.{match[1]}.{modules[match[2]]}.{leaf}",))
        raise ConfigError(
            f"weight {name!r} of {type(config).__name__} has no checkpoint name; add it to the family's map in "
            "ryzjax/checkpoint/families"
        )

    return weight


def expert_stack(template: str, num_experts: int) -> WholeTensors:
    """Returns a weight of all experts that is stored as one tensor per expert.

    Args:
      template: The tensor's name, with "{expert}" for the index of the expert.
      num_experts: Number of experts.
    """
    return WholeTensors(tuple(template.format(expert=expert) for expert in range(num_experts)), is_stack=True)


class SharedFields(TypedDict):
    """The fields that all families share, as keyword arguments of a family's config."""

    dtype: DType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    tie_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def shared_fields(
    hf: HFConfig,
    *,
    tie_embeddings: bool = False,
) -> SharedFields:
    """Reads the fields that all families share.

    Args:
      hf: The config to read.
      tie_embeddings: Whether the head is tied to the embedding if the config does not say.
    """
    fields = hf.fields
    vocab_size = fields.integer("vocab_size", high=2**24)
    hidden_size = fields.integer("hidden_size", high=2**20)
    num_heads = fields.integer("num_attention_heads", high=2**14)
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads, high=2**14)
    if num_heads % num_kv_heads:
        raise fields.fail(
            "num_key_value_heads", f"a divisor of num_attention_heads={num_heads}", remedy="Fix the config."
        )
    eos_token_ids, bos_token_id = _special_ids(hf, vocab_size)
    return SharedFields(
        dtype=hf.dtype,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", high=2**24),
        num_layers=fields.integer("num_hidden_layers", high=2**12),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(fields, hidden_size, num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", high=1.0),
        max_position=fields.integer("max_position_embeddings"),
        tie_embeddings=fields.boolean("tie_word_embeddings", default=tie_embeddings),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
    )


def check_silu(fields: ConfigFields) -> None:
    """Refuses a config whose `hidden_act` is not SiLU. A missing one means SiLU."""
    if fields.value("hidden_act") not in (None, "silu", "swish"):
        raise fields.fail("hidden_act", "'silu'", remedy="Other activations are not supported for this family.")


def shared_and_rope(
    hf: HFConfig, *, theta: float, tie_embeddings: bool = False, yarn_is_longrope: bool = False
) -> tuple[SharedFields, Rope]:
    """Reads `shared_fields` and the rope of a family with SiLU and one rope. RoPE scaling may raise `max_position`.

    Args:
      hf: The config to read.
      theta: RoPE's base if the config does not give one.
      tie_embeddings: Whether the head is tied to the embedding if the config does not say.
      yarn_is_longrope: Whether "yarn" means LongRoPE, as in old Phi-3 configs.
    """
    check_silu(hf.fields)
    shared = shared_fields(hf, tie_embeddings=tie_embeddings)
    head_dim, max_position = shared["head_dim"], shared["max_position"]
    rope = rope_from_hf(
        hf.fields, head_dim=head_dim, max_position=max_position, theta=theta, yarn_is_longrope=yarn_is_longrope
    )
    shared["max_position"] = scaled_max_position(rope, max_position)
    return shared, rope


def layer_windows(
    fields: ConfigFields, num_layers: int, *, is_sliding: Callable[[int], bool]
) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """Reads the attention window of each layer from `layer_types` and `sliding_window`.

    Args:
      fields: The config's fields.
      num_layers: Number of layers.
      is_sliding: Whether layer i has a sliding window, if the config has no `layer_types`.

    Returns:
      (windows, types): for each layer its window in tokens or None, and "sliding_attention" or "full_attention".
    """
    kinds = ("sliding_attention", "full_attention")
    types = fields.value("layer_types")
    if types is None:
        types = [kinds[0] if is_sliding(layer) else kinds[1] for layer in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers or any(t not in kinds for t in types):
        raise fields.fail(
            "layer_types",
            f"{num_layers} (num_hidden_layers) of 'sliding_attention' and 'full_attention'",
            remedy="Linear and other attention layers are not supported.",
        )
    if kinds[0] not in types:
        fields.ignore("sliding_window")
        return (None,) * num_layers, tuple(types)
    window = fields.integer("sliding_window")
    return tuple(window if t == kinds[0] else None for t in types), tuple(types)


def optional_window(fields: ConfigFields) -> int | None:
    """Reads the `sliding_window` of all layers in tokens; None if it is absent or null."""
    return fields.integer("sliding_window") if fields.has("sliding_window") else None


def _head_dim(fields: ConfigFields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.fail(
            "hidden_size",
            f"a multiple of num_attention_heads={num_heads}, since head_dim is not given",
            remedy="Add head_dim to the config.",
        )
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads, high=2**12)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number: RoPE rotates pairs", remedy="Fix the config.")
    return head_dim


def _special_ids(hf: HFConfig, vocab_size: int) -> tuple[tuple[int, ...], int | None]:
    """Returns (eos ids, bos id), each from generation_config.json if it has them, else from config.json."""
    from_generation = ConfigFields(raw=hf.generation, source="generation_config.json")

    def first(key: str) -> tuple[int, ...]:
        own = hf.fields.token_ids(key, vocab_size=vocab_size)
        return from_generation.token_ids(key, vocab_size=vocab_size) or own

    bos = first("bos_token_id")
    return first("eos_token_id"), bos[0] if bos else None
