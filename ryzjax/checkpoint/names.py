"""Our weight names, and what each vendor's checkpoint calls them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ryzjax.errors import ConfigError

__all__ = ["hf_weight_name", "is_ignorable_weight"]

_LLAMA_OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LLAMA_INNER = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def _llama(name: str) -> str | None:
    if name in _LLAMA_OUTER:
        return _LLAMA_OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LLAMA_INNER:
        return None
    return f"model.layers.{match[1]}.{_LLAMA_INNER[match[2]]}.{match[3]}"


_FAMILIES: Mapping[str, Callable[[str], str | None]] = {"llama": _llama}


def hf_weight_name(name: str, *, family: str = "llama") -> str:
    """The name HF's checkpoints use for our weight `name`, such as `layers.0.attention.q.weight`.

    Raises:
      ConfigError: the family has no such map, or the map no such weight.
    """
    if family not in _FAMILIES:
        raise ConfigError(f"family={family!r} has no map of checkpoint names; expected one of {sorted(_FAMILIES)}")
    hf_name = _FAMILIES[family](name)
    if hf_name is None:
        raise ConfigError(f"weight {name!r} has no checkpoint name in family {family!r}; add it to checkpoint/names.py")
    return hf_name


def is_ignorable_weight(hf_name: str, *, is_tied: bool) -> bool:
    """Whether a tensor no one asked for may be left unread.

    Old exports store RoPE's inverse frequencies, which follow from the config, and some store the head even where
    it is tied to the embedding.
    """
    return hf_name.endswith(".rotary_emb.inv_freq") or (is_tied and hf_name == "lm_head.weight")
