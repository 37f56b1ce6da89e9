"""gguf_config: converts a GGUF file's metadata to a Hugging Face config.

`model_config_from_hf` then reads that config, so that every check of a config exists once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ryzjax.checkpoint.config_fields import ConfigFields
from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.errors import UnsupportedModelError

__all__ = ["gguf_config"]

_IGNORED = frozenset(
    {
        "vocab_size",
        "attention.value_length",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    }
)
"""Keys of an architecture that repeat other keys or do not affect the maths."""


def gguf_config(file: GgufFile) -> dict[str, object]:
    """Returns the equivalent of `config.json` for the model in a GGUF file.

    Raises:
      UnsupportedModelError: The architecture is unknown, or the file has a key that may change the maths.
    """
    metadata = file.metadata()
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path}: general.architecture is {name!r}; expected one of {', '.join(sorted(_ARCHITECTURES))}. "
            "Serve a model of a supported architecture."
        )
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    fields = ConfigFields(raw=own, source=f"{file.path}: {name}")
    fields.ignore(*_IGNORED)
    gguf = _Gguf(file=file, metadata=metadata, fields=fields)
    raw = _shared(gguf) | _ARCHITECTURES[name](gguf)
    for key in own.keys() - fields.asked:
        raise fields.fail(
            key, "only keys that are known for this architecture", remedy="It may change the maths, so it is refused."
        )
    return raw


@dataclass(frozen=True, kw_only=True)
class _Gguf:
    """A GGUF file whose config is read.

    Attributes:
      file: The open file.
      metadata: All metadata.
      fields: The metadata of the architecture, without its prefix.
    """

    file: GgufFile
    metadata: Mapping[str, object]
    fields: ConfigFields

    def values(self, tensor: str) -> list[float] | None:
        """Returns the values of a small tensor; None if there is no such tensor."""
        import numpy as np

        entry = self.file.entries.get(tensor)
        if entry is None:
            return None
        out = np.empty(entry.shape, np.float32)
        self.file.read(tensor, tuple(slice(0, size) for size in entry.shape), out)
        return out.reshape(-1).tolist()


def _shared(gguf: _Gguf) -> dict[str, object]:
    fields = gguf.fields
    hidden, heads = fields.integer("embedding_length"), _uniform(fields, "attention.head_count")
    embedding = gguf.file.entries.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModelError(f"{gguf.file.path}: no tensor token_embd.weight; expected a language model's file")
    tokens = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}
    special = {key: gguf.metadata.get(f"tokenizer.ggml.{name}") for key, name in tokens.items()}
    ends = [special["eos_token_id"], gguf.metadata.get("tokenizer.ggml.eot_token_id")]
    special["eos_token_id"] = [token for token in ends if token is not None] or None
    return {
        **special,
        "hidden_size": hidden,
        "vocab_size": embedding.shape[0],
        "num_hidden_layers": fields.integer("block_count"),
        "intermediate_size": _uniform(fields, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _uniform(fields, "attention.head_count_kv", default=heads),
        "head_dim": fields.integer("attention.key_length", default=hidden // heads),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": fields.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in gguf.file.entries,
        "dtype": "bfloat16",
        "rope_theta": fields.number("rope.freq_base", default=10000.0),
        "rope_scaling": _scaling(gguf),
        **_partial_rotary(fields, hidden // heads),
    }


def _uniform(fields: ConfigFields, key: str, default: int | None = None) -> int:
    """Reads a number that newer files give for each layer. It must be the same in all layers."""
    value = fields.value(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise fields.fail(key, "the same number for every layer", remedy="Uneven layers are not supported.")
        return ConfigFields(raw={key: value[0]}, source=fields.source).integer(key)
    return fields.integer(key, default=default)


def _partial_rotary(fields: ConfigFields, default: int) -> dict[str, object]:
    head_dim = fields.integer("attention.key_length", default=default)
    rotated = fields.integer("rope.dimension_count", default=head_dim)
    return {} if rotated == head_dim else {"partial_rotary_factor": rotated / head_dim}


def _scaling(gguf: _Gguf) -> dict[str, object] | None:
    fields = gguf.fields
    kind = fields.value("rope.scaling.type")
    original = fields.integer("rope.scaling.original_context_length", default=fields.integer("context_length"))
    attention = fields.number("rope.scaling.attn_factor", default=1.0)
    long, short = gguf.values("rope_factors_long.weight"), gguf.values("rope_factors_short.weight")
    if long is not None and short is not None:
        return {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
            "attention_factor": attention,
            "original_max_position_embeddings": original,
        }
    factors = gguf.values("rope_freqs.weight")
    if factors is not None and any(factor != 1 for factor in factors):
        return {"rope_type": "factors", "factors": factors}
    if kind in (None, "none"):
        return None
    factor = fields.number("rope.scaling.factor")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        betas = {
            name: fields.number(f"rope.scaling.yarn_{name}", default=default)
            for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        }
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}
    raise fields.fail("rope.scaling.type", "none, linear or yarn", remedy="Other scalings are not supported.")


def _experts(gguf: _Gguf) -> dict[str, object]:
    fields = gguf.fields
    size = fields.integer("expert_feed_forward_length", default=_uniform(fields, "feed_forward_length"))
    return {
        "num_local_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "moe_intermediate_size": size,
    }


def _llama(gguf: _Gguf) -> dict[str, object]:
    """The architecture "llama" also stands for Mistral and Mixtral."""
    window = gguf.fields.value("attention.sliding_window")
    if gguf.fields.integer("expert_count", default=0, low=0):
        experts = _experts(gguf)
        inner = experts.pop("moe_intermediate_size")
        return {
            "architectures": ["MixtralForCausalLM"],
            "intermediate_size": inner,
            "sliding_window": window,
            **experts,
        }
    gguf.fields.ignore("expert_used_count")
    if window is not None:
        return {"architectures": ["MistralForCausalLM"], "sliding_window": window}
    biases = {
        "attention_bias": "blk.0.attn_q.bias" in gguf.file.entries,
        "mlp_bias": "blk.0.ffn_gate.bias" in gguf.file.entries,
    }
    return {"architectures": ["LlamaForCausalLM"], **biases}


def _qwen2(gguf: _Gguf) -> dict[str, object]:
    return {"architectures": ["Qwen2ForCausalLM"]}


def _qwen3(gguf: _Gguf) -> dict[str, object]:
    return {"architectures": ["Qwen3ForCausalLM"]}


def _qwen3moe(gguf: _Gguf) -> dict[str, object]:
    # The file does not say so, but llama.cpp always scales the chosen experts' weights to sum to one.
    return {"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": True, **_experts(gguf)}


def _query_scalar(gguf: _Gguf, largest_layers: int) -> float:
    """Returns Gemma's query_pre_attn_scalar, which files lack: the head dim, except in the largest model."""
    fields = gguf.fields
    hidden, heads = fields.integer("embedding_length"), _uniform(fields, "attention.head_count")
    if fields.integer("block_count") == largest_layers:
        return hidden / heads
    return fields.integer("attention.key_length", default=hidden // heads)


def _gemma2(gguf: _Gguf) -> dict[str, object]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "query_pre_attn_scalar": _query_scalar(gguf, largest_layers=46),
        "attn_logit_softcapping": gguf.fields.number("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": gguf.fields.number("final_logit_softcapping", default=30.0),
        "sliding_window": gguf.fields.integer("attention.sliding_window", default=4096),
    }


def _gemma3(gguf: _Gguf) -> dict[str, object]:
    softcap = gguf.fields.value("final_logit_softcapping")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "query_pre_attn_scalar": _query_scalar(gguf, largest_layers=62),
        "sliding_window": gguf.fields.integer("attention.sliding_window"),
        "sliding_window_pattern": gguf.fields.integer("attention.sliding_window_pattern", default=6),
        "rope_theta": gguf.fields.number("rope.freq_base", default=1e6),
        "rope_local_base_freq": gguf.fields.number("rope.freq_base_swa", default=10000.0),
        "final_logit_softcapping": softcap,
    }


def _phi3(gguf: _Gguf) -> dict[str, object]:
    window = gguf.fields.value("attention.sliding_window")
    original = gguf.fields.integer(
        "rope.scaling.original_context_length", default=gguf.fields.integer("context_length")
    )
    return {
        "architectures": ["Phi3ForCausalLM"],
        "sliding_window": window or None,
        "original_max_position_embeddings": original,
    }


def _smollm3(gguf: _Gguf) -> dict[str, object]:
    return {"architectures": ["SmolLM3ForCausalLM"]}


def _olmo2(gguf: _Gguf) -> dict[str, object]:
    """OLMo 3's files have the same architecture, and a sliding window."""
    window = gguf.fields.value("attention.sliding_window")
    if window is None:
        return {"architectures": ["Olmo2ForCausalLM"]}
    pattern = gguf.fields.value("attention.sliding_window_pattern")
    types = None
    if isinstance(pattern, list):
        types = ["sliding_attention" if is_sliding else "full_attention" for is_sliding in pattern]
    return {"architectures": ["Olmo3ForCausalLM"], "sliding_window": window, "layer_types": types}


def _gpt_oss(gguf: _Gguf) -> dict[str, object]:
    experts = _experts(gguf)
    inner = experts.pop("moe_intermediate_size")
    scaling = _scaling(gguf)
    if scaling is not None:
        scaling["truncate"] = False  # like GPT-OSS's own code, llama.cpp does not round the ends of YaRN's ramp
    return {
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": inner,
        "sliding_window": gguf.fields.integer("attention.sliding_window", default=128),
        "rope_scaling": scaling,
        **experts,
    }


_ARCHITECTURES: Mapping[str, Callable[[_Gguf], dict[str, object]]] = {
    "llama": _llama,
    "mistral3": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
    "gpt-oss": _gpt_oss,
}
"""`general.architecture` -> a function that returns its config's fields beside the shared ones."""
