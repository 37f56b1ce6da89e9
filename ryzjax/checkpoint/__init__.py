"""Checkpoint formats and name maps: which files a model has, what they say, and which tensor holds which weight.

    source            finds a model's files (`hub`, `weight_files`, `json_object` help)
    hf/               config.json -> ModelConfig, and models written in Hugging Face's layout
    families/         one file per model family: its fields in config.json and its tensor names
    gguf/             GGUF files: metadata, tensors and llama.cpp's names
    peft/             LoRA adapters in PEFT's layout
    quantized/        GPTQ, AWQ, bitsandbytes, compressed-tensors: stored matrices
    config_fields     typed, checked reads of a config's fields
    safetensors, tensor_file, stored_weight, mxfp4    reading tensors, and parts of them, as weights
    open_checkpoint   all of the above for one model: our weight name -> where it is stored
    kv_scales, certificate    what may lie beside the weights

Everything that knows a vendor's name, key or byte layout belongs here, and nowhere else. What needs devices belongs to
`loading`, and what chooses the bits of a weight to `quant`.
"""

from ryzjax.checkpoint.hf.config import model_config_from_hf
from ryzjax.checkpoint.source import CheckpointSource, resolve_source

__all__ = [
    "CheckpointSource",
    "model_config_from_hf",
    "resolve_source",
]
