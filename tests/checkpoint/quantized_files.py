"""Writes quantized checkpoints of a tiny model in every format, packed value by value as the format specifies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, HEADS, KV_HEADS, VOCAB = 64, 128, 4, 2, 96
RAW: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LINEARS: dict[str, tuple[str, tuple[int, int]]] = {
    "attention.q": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attention.k": ("self_attn.k_proj", (HIDDEN // 2, HIDDEN)),
    "attention.v": ("self_attn.v_proj", (HIDDEN // 2, HIDDEN)),
    "attention.o": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "mlp.gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "mlp.up": ("mlp.up_proj", (INNER, HIDDEN)),
    "mlp.down": ("mlp.down_proj", (HIDDEN, INNER)),
}
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A quantized matrix as a format stores it, and the float32 values that it stands for.

    Attributes:
      tensors: The stored tensors by the ending of their names.
      values: The dequantized matrix, float32 [N, K].
    """

    tensors: Tensors
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of quantized checkpoints."""

    config: Mapping[str, object]
    pack: Callable[[np.random.Generator, int, int], Packed]
    ignored: Tensors = field(default_factory=dict)


def write(
    folder: Path,
    format: Format,
    raw: Mapping[str, object] = RAW,
    edit: Callable[[Tensors], object] = lambda tensors: None,
) -> dict[str, np.ndarray]:
    """Writes the model, and returns the float32 values of each linear layer by its name in RyzJAX.

    Args:
      edit: Changes the tensors before they are written.
    """
    rng = np.random.default_rng(0)
    tensors: Tensors = {
        "model.embed_tokens.weight": rng.standard_normal((VOCAB, HIDDEN), np.float32),
        "lm_head.weight": rng.standard_normal((VOCAB, HIDDEN), np.float32),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(HIDDEN, np.float32),
        "model.layers.0.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
        **format.ignored,
    }
    values = {}
    for name, (hf, shape) in LINEARS.items():
        packed = format.pack(rng, *shape)
        tensors |= {f"model.layers.0.{hf}.{ending}": tensor for ending, tensor in packed.tensors.items()}
        values[f"layers.0.{name}"] = packed.values
    edit(tensors)
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": dict(format.config)}))
    return values


def words(q: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Packs values bit by bit into int32 words along the last axis. `order[i]` is the column of value i of a word."""
    per_word = 32 // bits
    *lead, size = q.shape
    out = np.zeros((*lead, -(-size // per_word)), np.uint64)
    for column in range(size):
        word, inside = divmod(column, per_word)
        at = inside if order is None else order.index(inside)
        out[..., word] |= q[..., column].astype(np.uint64) << np.uint64(bits * at)
    return out.astype(np.uint32).view(np.int32)


def _scales(rng: np.random.Generator, shape: tuple[int, ...], dtype: type = np.float16) -> np.ndarray:
    return rng.uniform(0.01, 0.05, shape).astype(dtype)


def gptq(
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    stores_minus_one: bool = True,
    act_order: bool = False,
) -> Callable[[np.random.Generator, int, int], Packed]:
    """Returns a packer for GPTQ. With `stores_minus_one` zeros are stored minus one, as in version 1."""

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        size = k if group == -1 else group
        groups = k // size
        q = rng.integers(0, 2**bits, (k, n))
        zeros = np.full((groups, n), 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, (groups, n))
        scales = _scales(rng, (groups, n))
        g_idx = np.arange(k) // size
        if act_order:
            g_idx = rng.permutation(g_idx)
        values = scales[g_idx].astype(np.float32) * (q - zeros[g_idx]).astype(np.float32)
        stored_zeros = (zeros - stores_minus_one) % 2**bits
        tensors = {
            "qweight": words(q.T, bits).T,
            "qzeros": words(stored_zeros, bits),
            "scales": scales,
            "g_idx": g_idx.astype(np.int32),
        }
        return Packed(tensors=tensors, values=values.T)

    return pack


def awq(rng: np.random.Generator, n: int, k: int) -> Packed:
    """Packs in AWQ's GEMM layout."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    q, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (k // 32, n))
    scales = _scales(rng, (k // 32, n))
    group = np.arange(k) // 32
    values = (q - zeros[group]).astype(np.float32) * scales[group].astype(np.float32)
    tensors = {"qweight": words(q, 4, order), "qzeros": words(zeros, 4, order), "scales": scales}
    return Packed(tensors=tensors, values=values.T)


def packed(
    *, bits: int = 4, group: int | None = 32, symmetric: bool = True, act_order: bool = False
) -> Callable[[np.random.Generator, int, int], Packed]:
    """Packs as compressed-tensors' pack-quantized."""

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        half, size = 2 ** (bits - 1), group or k
        groups = k // size
        q = rng.integers(-half, half, (n, k))
        scales = _scales(rng, (n, groups), ml_dtypes.bfloat16)
        zeros = np.zeros((n, groups), int) if symmetric else rng.integers(-half, half, (n, groups))
        group_of = np.arange(k) // size
        if act_order:
            group_of = rng.permutation(group_of)
        values = (q - zeros[:, group_of]).astype(np.float32) * scales[:, group_of].astype(np.float32)
        tensors = {
            "weight_packed": words(q + half, bits),
            "weight_scale": scales,
            "weight_shape": np.array([n, k], np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words((zeros + half).T, bits).T
        if act_order:
            tensors["weight_g_idx"] = group_of.astype(np.int32)
        return Packed(tensors=tensors, values=values)

    return pack


def int8_rows(rng: np.random.Generator, n: int, k: int) -> Packed:
    """Stores as compressed-tensors' int-quantized."""
    q, scales = rng.integers(-128, 128, (n, k)).astype(np.int8), _scales(rng, (n, 1), np.float32)
    return Packed(tensors={"weight": q, "weight_scale": scales}, values=q.astype(np.float32) * scales)


def float8(
    *, scale_shape: Callable[[int, int], tuple[int, ...]], scale: str = "weight_scale", block: int = 0
) -> Callable[[np.random.Generator, int, int], Packed]:
    """Stores FP8 with one scale per tensor, per row, or per block of `block` x `block`."""

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        q = (rng.standard_normal((n, k)) * 8).astype(ml_dtypes.float8_e4m3fn)
        scales = _scales(rng, scale_shape(n, k), np.float32)
        full = scales
        if block:
            full = np.repeat(np.repeat(scales, block, axis=0), block, axis=1)[:n, :k]
        return Packed(tensors={"weight": q, scale: scales}, values=q.astype(np.float32) * full)

    return pack


def _compressed(format: str, weights: Mapping[str, object], activations: object = None) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": activations, "format": format}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
_INT8_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}

FORMATS: dict[str, Format] = {
    "gptq": Format(config={"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, pack=gptq()),
    "gptq_asymmetric": Format(
        config={"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, pack=gptq(symmetric=False)
    ),
    "gptq_v2": Format(
        config={"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4, "group_size": 32, "sym": False},
        pack=gptq(symmetric=False, stores_minus_one=False),
    ),
    # The label says version 1, but the zeros are 8, as in version 2.
    "gptq_lying": Format(
        config={"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, pack=gptq(stores_minus_one=False)
    ),
    "gptq_act_order": Format(
        config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False},
        pack=gptq(symmetric=False, act_order=True),
    ),
    "gptq_int8": Format(config={"quant_method": "gptq", "bits": 8, "group_size": 32, "sym": True}, pack=gptq(bits=8)),
    "gptq_int8_asymmetric": Format(
        config={"quant_method": "gptq", "bits": 8, "group_size": 32, "sym": False}, pack=gptq(bits=8, symmetric=False)
    ),
    "gptq_rows": Format(config={"quant_method": "gptq", "bits": 4, "group_size": -1}, pack=gptq(group=-1)),
    # The config has groups of 128; an override makes them 32.
    "gptq_dynamic": Format(
        config={"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {r"+:.*\.layers\..*": {"sym": False}}},
        pack=gptq(symmetric=False),
    ),
    "awq": Format(config={"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, pack=awq),
    "packed_int4": Format(config=_compressed("pack-quantized", _INT4), pack=packed()),
    "packed_int4_asymmetric": Format(config=_compressed("pack-quantized", _INT4), pack=packed(symmetric=False)),
    "packed_int4_act_order": Format(config=_compressed("pack-quantized", _INT4), pack=packed(act_order=True)),
    "packed_int4_rows": Format(config=_compressed("pack-quantized", _INT4), pack=packed(group=None)),
    "packed_int8": Format(config=_compressed("pack-quantized", {**_INT4, "num_bits": 8}), pack=packed(bits=8)),
    "packed_int8_asymmetric": Format(
        config=_compressed("pack-quantized", {**_INT4, "num_bits": 8}), pack=packed(bits=8, symmetric=False)
    ),
    "w8a8": Format(config=_compressed("int-quantized", {"num_bits": 8}, _INT8_TOKENS), pack=int8_rows),
    "int8_weight_only": Format(config=_compressed("int-quantized", {"num_bits": 8}), pack=int8_rows),
    "float8_tensor": Format(
        config=_compressed("float-quantized", {"num_bits": 8, "type": "float"}),
        pack=float8(scale_shape=lambda n, k: (1,)),
    ),
    "float8_rows": Format(
        config=_compressed("float-quantized", {"num_bits": 8, "type": "float"}),
        pack=float8(scale_shape=lambda n, k: (n, 1)),
    ),
    "float8_blocks": Format(
        config=_compressed("float-quantized", {"num_bits": 8, "type": "float", "block_structure": [16, 16]}),
        pack=float8(scale_shape=lambda n, k: (n // 16, k // 16), block=16),
    ),
    "hf_fp8": Format(
        config={"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"},
        pack=float8(scale_shape=lambda n, k: (n // 16, k // 16), block=16, scale="weight_scale_inv"),
    ),
    # The last blocks are incomplete.
    "hf_fp8_48": Format(
        config={"quant_method": "fp8", "weight_block_size": [48, 48]},
        pack=float8(scale_shape=lambda n, k: (-(-n // 48), -(-k // 48)), block=48, scale="weight_scale_inv"),
    ),
}
