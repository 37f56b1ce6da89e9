"""Writes the benchmark checkpoints as GGUF files for llama.cpp.

They hold the same random weights as the checkpoints of shapes.py, quantized to about the bits that RyzJAX runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.BF16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q8_0),
    "int4": (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0),
}
"""The GGUF types for each `--bits`: of the linear layers, and of the embedding table, which is also the head."""


def gguf_checkpoint(folder: Path, bits: str) -> Path:
    """Returns the GGUF file of the model in `folder`, which shapes.py made. Writes it into the folder on first use."""
    target = folder / f"{bits}.gguf"
    if target.is_file():
        return target
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, heads, kv_heads = (
        config[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_byte_tokenizer(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    linear, table = TYPES[bits]
    with safe_open(folder / "model.safetensors", "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            weight = tensors.get_tensor(name).astype(np.float32)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = _interleaved(weight, heads if "q_proj" in name else kv_heads)
            renamed = names.get_name(name, try_suffixes=(".weight",))
            assert renamed is not None, name
            if weight.ndim == 1:
                writer.add_tensor(renamed, weight)
                continue
            kind = table if "embed_tokens" in name else linear
            writer.add_tensor(renamed, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(target)


def _add_byte_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Adds a SentencePiece vocabulary of three special tokens, the 256 bytes and fillers.

    llama-server needs one, because it answers with text.
    """
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(f"<filler{i}>", kinds.NORMAL) for i in range(len(tokens), vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Permutes the rows of each head from halves to interleaved pairs, the order in which llama.cpp applies RoPE."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)
