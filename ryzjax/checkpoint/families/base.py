"""HFFamily: how Hugging Face spells a family's config and weights; and what most families share of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from ryzjax.checkpoint.hf.fields import ConfigFields
from ryzjax.checkpoint.hf.rope import rope_from_hf, scaled_max_position
from ryzjax.checkpoint.stored import Stored, StoredWeight
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
"""Our module of a layer -> HF's, as Llama has them and most families after it."""

_OUTER_MODULES = {"embed": "{prefix}embed_tokens", "final_norm": "{prefix}norm", "lm_head": "lm_head"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """A config to be read, and how.

    Attributes:
      fields: of `config.json`, or of its text part.
      generation: `generation_config.json`, empty where there is none; its token ids win.
      dtype: what weights are to be in memory.
    """

    fields: ConfigFields
    generation: Mapping[str, object]
    dtype: DType


@dataclass(frozen=True, kw_only=True)
class HFFamily:
    """One family's spelling.

    Attributes:
      name: key of `models.registry.FAMILIES`.
      architectures: HF architecture -> its `model_type`.
      read: the family's config from HF's.
      weight: (our weight name, config, prefix of the text model, names in the files) -> where it is stored.
      defaults: what transformers takes for keys that the file does not have.
      text_config: key of the text model's own config in multimodal architectures; elsewhere ignored.
      prefixes: what may stand before `layers.0` in the files.
      ignored: prefixes of tensors that belong to other parts of a multimodal model.
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
    """`HFFamily.weight` of a family whose weights are stored one to one.

    Args:
      modules: our module of a layer -> HF's.
    """

    def weight(name: str, config: ModelConfig, prefix: str, available: frozenset[str]) -> StoredWeight:
        module, _, leaf = name.rpartition(".")
        if module in _OUTER_MODULES:
            return Stored((f"{_OUTER_MODULES[module].format(prefix=prefix)}.{leaf}",))
        match = _LAYER.fullmatch(module)
        if match is not None and match[2] in modules:
            return Stored((f"{prefix}layers.{match[1]}.{modules[match[2]]}.{leaf}",))
        raise ConfigError(
            f"weight {name!r} of {type(config).__name__} has no checkpoint name; add it to the family's map in "
            "ryzjax/checkpoint/families"
        )

    return weight


def expert_stack(template: str, num_experts: int) -> Stored:
    """A weight of all experts from one tensor an expert; `template` has `{expert}` in it."""
    return Stored(tuple(template.format(expert=expert) for expert in range(num_experts)), is_stack=True)


class SharedFields(TypedDict):
    """The fields of ModelConfig, as keyword arguments of a family's config."""

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
    """Reads what all families have.

    Args:
      tie_embeddings: where the file is silent.
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
    """Refuses a config whose `hidden_act` is not SiLU, the default."""
    if fields.value("hidden_act") not in (None, "silu", "swish"):
        raise fields.fail("hidden_act", "'silu'", remedy="Other activations are not supported for this family.")


def shared_and_rope(
    hf: HFConfig, *, theta: float, tie_embeddings: bool = False, yarn_is_longrope: bool = False
) -> tuple[SharedFields, Rope]:
    """`shared_fields`, and the one rope of a SiLU family; its scaling may lengthen `max_position`.

    Args:
      theta: RoPE's base where the file is silent.
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
    """(window of each layer, type of each layer) from `layer_types` and `sliding_window`.

    Args:
      is_sliding: whether layer i is a sliding one, where the file has no `layer_types`.
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
    """`sliding_window` of all layers; None where it is absent or null."""
    return fields.integer("sliding_window") if fields.has("sliding_window") else None


def _head_dim(fields: ConfigFields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.fail(
            "hidden_size",
            f"a multiple of num_attention_heads={num_heads} where head_dim is not given",
            remedy="Add head_dim to the config.",
        )
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads, high=2**12)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number: RoPE rotates pairs", remedy="Fix the config.")
    return head_dim


def _special_ids(hf: HFConfig, vocab_size: int) -> tuple[tuple[int, ...], int | None]:
    """(eos ids, bos id): generation_config's where it has them, else config's."""
    from_generation = ConfigFields(raw=hf.generation, source="generation_config.json")

    def first(key: str) -> tuple[int, ...]:
        own = hf.fields.token_ids(key, vocab_size=vocab_size)
        return from_generation.token_ids(key, vocab_size=vocab_size) or own

    bos = first("bos_token_id")
    return first("eos_token_id"), bos[0] if bos else None
