"""Makes tests/goldens/llama3_tiny.npz: greedy tokens and logits of a tiny random Llama 3 from transformers.

    pip install torch==2.13.0 && python tests/goldens/make_llama3_tiny.py

The file keeps only the config, the seed and the results. `tiny_weights` draws the same weights for RyzJAX and for
torch.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PROMPT_TOKENS = 96
NEW_TOKENS = 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    # The original length is shorter than the prompt, so that the scaling has an effect.
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def tiny_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns random weights by HF name, the same everywhere, and large enough that logits differ clearly."""
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        values = rng.standard_normal(shape).astype(np.float32)
        weights[name] = 1 + 0.1 * values if name.endswith("norm.weight") else values * (1.5 / shape[-1] ** 0.5)
    return weights


def hf_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight of CONFIG by its HF name."""
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    heads, kv = (CONFIG[n] * CONFIG["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (heads, hidden),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
            layer + "self_attn.o_proj.weight": (hidden, heads),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def prompt() -> list[int]:
    """Returns the tokens of the prompt."""
    return np.random.default_rng(5).integers(3, CONFIG["vocab_size"], PROMPT_TOKENS).tolist()


def reference() -> tuple[list[int], np.ndarray]:
    """Returns greedy tokens of transformers, and the float32 logits [NEW_TOKENS, V] they were chosen from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"})).float().eval()
    state = {name: torch.from_numpy(values) for name, values in tiny_weights(hf_shapes()).items()}
    model.load_state_dict(state, strict=True)
    tokens, logits = prompt(), []
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            last = model(torch.tensor([tokens])).logits[0, -1]
            logits.append(last.numpy().copy())
            tokens.append(int(last.argmax()))
    return tokens[PROMPT_TOKENS:], np.stack(logits)


def write_checkpoint(folder: Path) -> Path:
    """Writes the tiny model as an HF directory (config and safetensors)."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tiny_weights(hf_shapes()), folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    greedy, logits = reference()
    np.savez_compressed(HERE / "llama3_tiny.npz", tokens=np.array(greedy, np.int32), logits=logits)
    print(f"{len(greedy)} tokens: {greedy}")
