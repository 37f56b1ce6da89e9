"""Maps our weight names to llama.cpp's tensor names. Both use one set of names for almost all architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ryzjax.checkpoint.gguf.file import RowTransform
from ryzjax.checkpoint.stored_weight import StoredWeight, TensorRows, WholeTensors
from ryzjax.errors import ConfigError
from ryzjax.models.config import ModelConfig

__all__ = ["gguf_weight", "is_ignorable_gguf", "row_transforms"]

_OUTER = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention": "attn",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate": "ffn_gate_exps",
    "mlp.experts.up": "ffn_up_exps",
    "mlp.experts.down": "ffn_down_exps",
}
_OTHER_NAMES = {"gpt_oss": {"mlp_norm": "post_attention_norm"}}
_NAME = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_INTERLEAVED = ("llama", "mistral", "mixtral", "smollm3")
"""Families for which llama.cpp's converter permutes the rows of q and k for interleaved RoPE."""
_SHIFTED_NORMS = ("gemma2", "gemma3")
"""Families whose norms the converter stores as one plus the weight."""
_QK = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)")
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def gguf_weight(name: str, family: str, config: ModelConfig, available: frozenset[str]) -> StoredWeight:
    """Returns where a GGUF file stores a weight.

    Args:
      name: Our weight name.
      family: The model's family.
      config: The model's config.
      available: The names of all tensors in the files.

    Raises:
      ConfigError: llama.cpp has no name for the weight.
    """
    module, _, leaf = name.rpartition(".")
    if module in _OUTER:
        return WholeTensors((f"{_OUTER[module]}.{leaf}",))
    if name.endswith(".attention.sinks"):
        return WholeTensors((f"blk.{name.split('.')[1]}.attn_sinks.weight",))
    match = _NAME.fullmatch(name)
    names = {**_LAYER, **_OTHER_NAMES.get(family, {})}
    if match is None or match[2] not in names:
        raise ConfigError(f"weight {name!r} has no GGUF name; add it to ryzjax/checkpoint/gguf/names.py")
    block, module, leaf = f"blk.{match[1]}.", match[2], match[3]
    fused = _fused(module, config)
    if (
        fused is not None
        and f"{block}{fused[0]}.{leaf}" in available
        and f"{block}{names[module]}.{leaf}" not in available
    ):
        return TensorRows(f"{block}{fused[0]}.{leaf}", fused[1], axis=-2 if leaf == "weight" else -1, total=fused[2])
    if family == "phi3" and module in ("mlp.gate", "mlp.up"):
        inner = config.intermediate_size
        rows = slice(0, inner) if module == "mlp.gate" else slice(inner, 2 * inner)
        return TensorRows(f"{block}ffn_up.{leaf}", rows, axis=-2, total=2 * inner)
    return WholeTensors((f"{block}{names[module]}.{leaf}",))


def row_transforms(family: str, tensors: Iterable[str], config: ModelConfig) -> Mapping[str, RowTransform]:
    """Returns tensor name -> the change that llama.cpp's converter made, for the tensors that it changed."""
    transforms = {}
    for tensor in tensors:
        if family in _INTERLEAVED and _QK.fullmatch(tensor):
            transforms[tensor] = RowTransform(interleaved_head_dim=config.head_dim)
        elif family in _SHIFTED_NORMS and tensor.endswith("norm.weight"):
            transforms[tensor] = RowTransform(shift=1.0)
    return transforms


def is_ignorable_gguf(tensor: str) -> bool:
    """Whether a tensor that belongs to no weight may be ignored: RoPE factors, which the config has already."""
    return tensor in _DERIVED


def _fused(module: str, config: ModelConfig) -> tuple[str, slice, int] | None:
    """Returns (tensor, its rows, its rows in total) of q, k or v in a file that fuses the three; None for others."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    starts = {"attention.q": (0, q), "attention.k": (q, q + kv), "attention.v": (q + kv, q + 2 * kv)}
    return ("attn_qkv", slice(*starts[module]), q + 2 * kv) if module in starts else None
