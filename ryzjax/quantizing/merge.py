"""Merges an adapter into the weights of a checkpoint, and writes the result as a plain or a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.checkpoint.hf.save import PLAIN_DTYPES, in_dtype, save_hf
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.load import weight_reader
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.progress import byte_progress
from ryzjax.loading.text_files import copy_text_files
from ryzjax.loading.weight_plan import plan_weights
from ryzjax.lora.adapter import Adapter, BaseQuantization, check_adapter
from ryzjax.lora.merge import merged
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import dequantize
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.quantize import QuantizedModel, quantize
from ryzjax.sharding import Layout, Placement

__all__ = ["MergedDtype", "merge_checkpoint", "merged_dtype", "quantize_merged"]

MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The dtype of the written weights. "auto" takes the checkpoint's own, or what a quantized one computes in."""


def merge_checkpoint(
    source: CheckpointSource,
    adapter: Adapter,
    folder: Path,
    *,
    rounding: BaseQuantization | None = None,
    dtype: MergedDtype = "auto",
    show_progress: bool = False,
) -> None:
    """Writes a model with an adapter merged into its weights: config, tokenizer and plain safetensors.

    Each adapted matrix is read as float32 (and dequantized if it is quantized), updated in float32, and rounded to
    `dtype` once. One tensor is in memory at a time. Of a multimodal model the text model is written.

    Args:
      source: The base model, in any format.
      adapter: The adapter.
      folder: The folder to write; it is created if it does not exist.
      rounding: How a plain base was quantized while loading, when the adapter was trained. The weights are quantized
        the same way and dequantized before the adapter is added. None adds it to the weights as stored.
      dtype: The dtype of all written weights.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: The adapter does not fit the model, a merged weight is too large for the dtype, the family cannot be
        written in Hugging Face's layout, or `rounding` was given for a base that is quantized already.
      CheckpointError: A file is damaged, or the disk is full.
    """
    name = merged_dtype(source, dtype)
    config = read_model_config(source, dtype="float32")
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    model = abstract_model(config, placement)
    formats = {}
    if rounding is not None:
        plan = plan_weights(source, config, placement, weights=rounding.weights, group=rounding.group)
        formats = plan.model.quantization
    check_adapter(adapter, model.linears, name=adapter.base_model or "adapter")
    target = in_dtype(model, name)
    total = sum(spec.nbytes for spec in target.weights.values())
    with weight_reader(source, model) as reader, byte_progress("Merging", total, show=show_progress) as advance:

        def compute(weight: str) -> np.ndarray:
            w, layer = jnp.asarray(reader.weight(weight), jnp.float32), weight.removesuffix(".weight")
            if weight.endswith(".weight") and layer in formats:
                w = dequantize(quantize_matrix(weight, w, formats[layer]))
            if weight.endswith(".weight") and layer in adapter.weights:
                w = merged(w, adapter.weights[layer], adapter.config.scale_of(layer))
            values = _rounded(weight, np.asarray(w, np.float32), PLAIN_DTYPES[name])
            advance(values.nbytes)
            return values

        stack = lru_cache(maxsize=3)(compute)  # gate, up and down of a layer, requested expert by expert

        def get(weight: str) -> np.ndarray:
            return stack(weight) if len(model.weights[weight].shape) == 3 else compute(weight)

        save_hf(folder, target, get, config=source.config, generation=source.generation, copy_texts=_texts_of(source))


def quantize_merged(merged: Path, out: Path, recipe: Recipe, *, show_progress: bool = False) -> QuantizedModel:
    """Quantizes a checkpoint that `merge_checkpoint` wrote, by a recipe that needs no data.

    Args:
      merged: The folder with the plain weights.
      out: The folder to create. Until `QuantizedModel.finish` it is called `<out>.partial`.
      recipe: The recipe.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: The folder exists, or a weight is NaN or infinite; see `quantize`.
      CheckpointError: A file is damaged, or the disk is full.
    """
    source = resolve_source(str(merged))
    config = read_model_config(source)
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    return quantize(source, config, placement, recipe, out, show_progress=show_progress)


def merged_dtype(source: CheckpointSource, dtype: MergedDtype) -> str:
    """Returns the dtype that "auto" stands for with this checkpoint. Any other dtype is returned unchanged."""
    if dtype != "auto":
        return dtype
    if "float16" in (source.config.get("dtype"), source.config.get("torch_dtype")):
        return "float16"
    return read_model_config(source).dtype


def _rounded(name: str, w: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = w.astype(dtype)
    if not np.isfinite(values).all():
        what = "are not finite" if not np.isfinite(w).all() else f"are too large for {dtype.name}; use bfloat16"
        raise ConfigError(f"{name}: values of the merged weight {what}")
    return values


def _texts_of(source: CheckpointSource) -> Callable[[Path], None]:
    return (
        Tokenizer.load(source.path).save
        if source.weight_format == "gguf"
        else partial(copy_text_files, source.directory)
    )
