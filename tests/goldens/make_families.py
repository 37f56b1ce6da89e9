"""Makes tests/goldens/families.npz and families.json: logits of a tiny random model per family and RoPE scaling.

    pip install torch==2.13.0 && python tests/goldens/make_families.py

The files keep the configs and tensor shapes that transformers saves, the tokens and the logits, but not the weights.
Both sides draw the same weights from the name of each tensor.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PROMPT_TOKENS = 96
NEW_TOKENS = 32
VOCAB = 48

_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.5, 6.0],
}
_LOCAL = ["sliding_attention", "full_attention"]

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {"rope_parameters": _PLAIN}),
    "llama biases, head_dim": (
        "Llama",
        {"rope_parameters": _PLAIN, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama tied, one kv head": (
        "Llama",
        {"rope_parameters": _PLAIN, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "llama linear rope": ("Llama", {"rope_parameters": {**_PLAIN, "rope_type": "linear", "factor": 4.0}}),
    "llama dynamic rope": (
        "Llama",
        {"rope_parameters": {**_PLAIN, "rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64},
    ),
    "llama yarn rope": ("Llama", {"rope_parameters": _YARN}),
    "llama yarn rope, attention factor, betas": (
        "Llama",
        {"rope_parameters": {**_YARN, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 0.5}},
    ),
    "llama yarn rope, mscale, no truncation": (
        "Llama",
        {"rope_parameters": {**_YARN, "mscale": 1.4, "mscale_all_dim": 0.7, "truncate": False}},
    ),
    "llama llama3 rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {"rope_parameters": _PLAIN, "sliding_window": 20}),
    "mistral without window": ("Mistral", {"rope_parameters": _PLAIN, "sliding_window": None}),
    "mixtral": (
        "Mixtral",
        {"rope_parameters": _PLAIN, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    "qwen2": ("Qwen2", {"rope_parameters": _PLAIN}),
    "qwen2 sliding": (
        "Qwen2",
        {"rope_parameters": _PLAIN, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"rope_parameters": _PLAIN, "head_dim": 16}),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "rope_parameters": _PLAIN,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3 moe, a dense layer, weights as they are": (
        "Qwen3Moe",
        {
            "rope_parameters": _PLAIN,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            "rope_parameters": _PLAIN,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "layer_types": [*_LOCAL, "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("Phi3", {"rope_parameters": _PLAIN, "sliding_window": 40}),
    "phi3 longrope": (
        "Phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 64, "max_position_embeddings": 256},
    ),
    "phi3 partial rotary": (
        "Phi3",
        {
            "rope_parameters": {**_LONG, "short_factor": [1.0, 1.2], "long_factor": [2.0, 5.0]},
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": (
        "SmolLM3",
        {"rope_parameters": _PLAIN, "num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", {"rope_parameters": _PLAIN}),
    "olmo3": (
        "Olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 16,
            "rope_parameters": {"full_attention": _YARN, "sliding_attention": _PLAIN},
        },
    ),
    "gpt-oss": (
        "GptOss",
        {
            "rope_parameters": {**_YARN, "rope_theta": 150000.0, "truncate": False},
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "swiglu_limit": 2.0,
            "swiglu_alpha": 1.5,
        },
    ),
}
"""The variants by name. Each has the prefix of its transformers classes, and its config."""


def prompt(seed: int = 5) -> list[int]:
    """Returns the tokens of the prompt."""
    return np.random.default_rng(seed).integers(3, VOCAB, PROMPT_TOKENS).tolist()


def tiny_weights(shapes: dict[str, tuple[int, ...]], family: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random weights by HF name, the same everywhere, and large enough that logits differ clearly."""
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), seed]))
        values = rng.standard_normal(shape).astype(np.float32)
        if "norm" in name:  # Gemma stores norms minus one
            weights[name] = (0 if family.startswith("Gemma") else 1) + 0.2 * values
        elif len(shape) == 1 or name.endswith("bias"):
            weights[name] = 0.5 * values
        else:
            weights[name] = values * np.float32(1.5 / shape[-1] ** 0.5)
    return weights


def build(name: str, folder: Path, seed: int = 0, **more: object):
    """Writes the checkpoint of a variant as transformers saves it, with the weights of `tiny_weights`.

    Returns:
      The model of transformers, and the shapes of its tensors.
    """
    import transformers
    from safetensors import safe_open
    from safetensors.numpy import save_file

    family, changes = VARIANTS[name]
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    model_class(config_class(**(_BASE | changes | more))).float().save_pretrained(folder)
    path = folder / "model.safetensors"
    with safe_open(path, "numpy") as file:
        shapes = {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    save_file(tiny_weights(shapes, family, seed), path, metadata={"format": "pt"})
    return model_class.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval(), shapes


def reference(model, tokens: list[int]) -> tuple[list[int], np.ndarray]:
    """Runs the prompt in one step and greedy tokens one by one.

    Returns:
      The tokens, and the float32 logits after each of them.
    """
    import torch

    tokens, rows = list(tokens), []
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), use_cache=True)
        rows.append(out.logits[0].numpy())
        for _ in range(NEW_TOKENS):
            tokens.append(int(rows[-1][-1].argmax()))
            out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0].numpy())
    return tokens, np.concatenate(rows)


def main() -> None:
    """Writes both files."""
    arrays, configs = {}, {}
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            model, shapes = build(name, Path(folder))
            config = json.loads((Path(folder) / "config.json").read_text())
        tokens, logits = reference(model, prompt())
        arrays[f"{name}/tokens"], arrays[f"{name}/logits"] = np.array(tokens, np.int32), logits
        configs[name] = {"config": config, "shapes": shapes}
        spread = float(logits.std())
        print(f"{name}: {len(set(tokens[PROMPT_TOKENS:]))} different tokens, logits' deviation {spread:.2f}")
    np.savez_compressed(HERE / "families.npz", **arrays)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in configs.items())
    (HERE / "families.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
