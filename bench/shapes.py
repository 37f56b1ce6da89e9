"""The model shapes of the benchmarks, and checkpoints of them with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ryzjax.data.byte_tokenizer import write_byte_tokenizer

_COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "rope_scaling": None,
}

SHAPES: dict[str, dict[str, object]] = {
    # Qwen2.5-0.5B without its attention biases.
    "qwen2.5-0.5b": _COMMON
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
    "smollm2-360m": _COMMON
    | {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
    },
}


def checkpoint(shape: str, folder: Path) -> Path:
    """Returns a checkpoint with random bf16 weights, a config and a byte-level tokenizer. Writes it on first use."""
    target = folder / shape
    if (target / "model.safetensors").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    (target / "config.json").write_text(json.dumps(config, indent=1))
    rng = np.random.default_rng(0)
    weights = {
        name: (
            np.ones(dims, np.float32) if name.endswith("norm.weight") else rng.standard_normal(dims, np.float32) * 0.02
        ).astype(ml_dtypes.bfloat16)
        for name, dims in _weight_shapes(config).items()
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    write_byte_tokenizer(target, vocab_size=int(str(config["vocab_size"])))
    return target


def _weight_shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    hidden, inner, heads, kv_heads, head_dim = (int(str(config[name])) for name in names)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (int(str(config["vocab_size"])), hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(int(str(config["num_hidden_layers"]))):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (heads * head_dim, hidden),
            layer + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            layer + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            layer + "self_attn.o_proj.weight": (hidden, heads * head_dim),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes
