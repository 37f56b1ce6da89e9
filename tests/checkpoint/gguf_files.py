"""Writes GGUF files of the tiny families with the `gguf` package, as llama.cpp's converter would."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = {
    "Llama": gguf.MODEL_ARCH.LLAMA,
    "Mistral": gguf.MODEL_ARCH.LLAMA,
    "Mixtral": gguf.MODEL_ARCH.LLAMA,
    "Qwen2": gguf.MODEL_ARCH.QWEN2,
    "Qwen3": gguf.MODEL_ARCH.QWEN3,
    "Qwen3Moe": gguf.MODEL_ARCH.QWEN3MOE,
    "Gemma2": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3": gguf.MODEL_ARCH.GEMMA3,
    "Phi3": gguf.MODEL_ARCH.PHI3,
    "SmolLM3": gguf.MODEL_ARCH.SMOLLM3,
    "Olmo2": gguf.MODEL_ARCH.OLMO2,
    "Olmo3": gguf.MODEL_ARCH.OLMO2,
    "GptOss": gguf.MODEL_ARCH.GPT_OSS,
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Permutes the rows of each head from halves to interleaved pairs, as convert_hf_to_gguf of llama.cpp does."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_factors(scaling: dict, head_dim: int) -> np.ndarray:
    """Returns llama.cpp's rope_freqs: the number by which each frequency of a Llama 3 is divided."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * scaling["rope_theta"] ** (i / head_dim)
        low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
        high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaling["factor"])
        else:
            smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def stacked(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns Hugging Face's tensors with the experts stacked in one tensor, under the names that `gguf` maps."""
    out: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, value in weights.items():
        head, marker, rest = name.partition(".experts.")
        number, _, part = rest.partition(".")
        if marker and number.isdigit():
            experts.setdefault(f"{head}.experts.{part}", []).append(value)
        elif name.endswith(("gate_up_proj", "gate_up_proj_bias")):  # GPT-OSS: gate and up rows alternate
            rows = value.swapaxes(-1, -2) if value.ndim == 3 else value
            leaf = ".bias" if name.endswith("bias") else ".weight"
            out[f"{head}.experts.gate_proj{leaf}"] = rows[:, 0::2]
            out[f"{head}.experts.up_proj{leaf}"] = rows[:, 1::2]
        elif name.endswith("experts.down_proj"):
            out[f"{name}.weight"] = value.swapaxes(-1, -2)
        elif name.endswith("experts.down_proj_bias"):
            out[f"{head}.experts.down_proj.bias"] = value
        elif name.endswith(".sinks"):
            out[f"{name}.weight"] = value
        else:
            out[name] = value
    return out | {name: np.stack(values) for name, values in experts.items()}


def write_gguf(path: Path, family: str, config: dict, weights: dict[str, np.ndarray], kind: str = "F32") -> None:
    """Writes one file. Matrices are quantized to `kind`, vectors are F32."""
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    add_config(writer, family, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for name, value in stacked(weights).items():
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        if family in ("Llama", "Mistral", "Mixtral", "SmolLM3") and ("q_proj" in name or "k_proj" in name):
            value = permute(value, heads if "q_proj" in name else kv_heads)
        if family.startswith("Gemma") and name.endswith("norm.weight"):
            value = value + 1
        qtype = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(value), qtype)
        writer.add_tensor(mapped, data, raw_dtype=qtype)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes everything that was added, and closes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(shape: tuple[int, int], kind: str, size: float = 0.01) -> np.ndarray:
    """Returns random bytes of a quantized matrix, uint8 [N, bytes of a row], for kinds that the package cannot write.

    Args:
      shape: [N, K] of the matrix.
      kind: One of `SCALES`.
      size: The largest magnitude of a value, about.
    """
    columns, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (shape[0], shape[1] // columns, block_bytes), dtype=np.uint8)
    for at, factor in SCALES[kind]:
        numbers = size * factor * rng.uniform(0.5, 1, (*data.shape[:2], 1))
        data[..., at : at + 2] = numbers.astype(np.float16).view(np.uint8)
    return data.reshape(shape[0], -1)


SCALES = {
    "Q4_0": ((0, 1 / 8),),
    "Q4_1": ((0, 2 / 15), (2, -1)),
    "Q5_0": ((0, 1 / 16),),
    "Q5_1": ((0, 2 / 31), (2, -1)),
    "Q8_0": ((0, 1 / 128),),
    "Q2_K": ((80, 2 / (3 * 15)), (82, 1 / 15)),
    "Q3_K": ((108, 1 / (4 * 32)),),
    "Q4_K": ((0, 2 / (15 * 63)), (2, 1 / 63)),
    "Q5_K": ((0, 2 / (31 * 63)), (2, 1 / 63)),
    "Q6_K": ((208, 1 / (32 * 128)),),
    "IQ4_NL": ((0, 1 / 127),),
    "IQ4_XS": ((0, 1 / (127 * 32)),),
    "TQ2_0": ((64, 1),),
}
"""Kind of blocks -> the byte of its float16 scale, and of its offset or the scale of its offsets. Beside each is its
magnitude where the values reach from -1 to 1."""


def add_config(writer: gguf.GGUFWriter, family: str, config: dict) -> None:
    """Adds the metadata of the architecture, and the tensors of RoPE."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    rope = config["rope_parameters"]
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
    add_scaling(writer, full, head_dim)
    if config.get("sliding_window") is not None:
        writer.add_sliding_window(config["sliding_window"])
    if family == "Olmo3":
        writer.add_sliding_window_pattern([t == "sliding_attention" for t in config["layer_types"]])
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
    if family == "Gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def add_scaling(writer: gguf.GGUFWriter, rope: dict, head_dim: int) -> None:
    """Adds RoPE scaling, as metadata or as tensors."""
    kind = rope["rope_type"]
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    elif kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "longrope":
        original, longest = rope["original_max_position_embeddings"], 256
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(longest / original) / math.log(original)))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
