"""An adapter added into the weights of a checkpoint, plain or quantized, and written: plain, or rounded to few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.checkpoint.hf.save import PLAIN_DTYPES, in_dtype, save_hf
from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.loading.load import check_checkpoint, load_weights, read_weights
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.progress import byte_progress
from ryzjax.loading.text_files import copy_text_files
from ryzjax.loading.weight_plan import plan_weights
from ryzjax.lora.adapter import Adapter, BaseRounding, check_adapter
from ryzjax.lora.merge import merged
from ryzjax.models.registry import AbstractModel, abstract_model
from ryzjax.qarray import dequantize
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.quantize import QuantizedModel, quantize
from ryzjax.sharding import Layout, Placement

__all__ = ["MergedDtype", "merge_checkpoint", "merged_dtype", "quantize_merged"]

MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of the weights that are written; auto: the checkpoint's own, and of a quantized one what it is computed in."""


def merge_checkpoint(
    source: CheckpointSource,
    adapter: Adapter,
    folder: Path,
    *,
    rounding: BaseRounding | None = None,
    dtype: MergedDtype = "auto",
    show_progress: bool = False,
) -> None:
    """Writes `source` with an adapter in its weights: config, tokenizer, and safetensors of plain weights.

    Each adapted matrix is read as float32 (dequantized, where it is quantized), added to in float32, and rounded once.
    One tensor is in memory at a time. Of a multimodal model the text model is written.

    Args:
      source: the base; whatever format it has.
      folder: to be made.
      rounding: of a plain base: the adapter is added to what its weights are once they are rounded so and dequantized,
        which is what it was trained beside. None adds it to the weights as they are.
      dtype: of all weights written.

    Raises:
      ConfigError: the adapter does not fit the model; a weight that the dtype cannot hold; a family that cannot be
        written as Hugging Face has it; rounding of a base that is quantized already.
      CheckpointError: damaged files, or a disk that is full.
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
    with _reader(source, model) as read, byte_progress("Merging", total, show=show_progress) as advance:

        def compute(weight: str) -> np.ndarray:
            w, layer = read(weight), weight.removesuffix(".weight")
            if weight.endswith(".weight") and layer in formats:
                w = dequantize(quantize_matrix(weight, w, formats[layer]))
            if weight.endswith(".weight") and layer in adapter.weights:
                w = merged(w, adapter.weights[layer], adapter.config.scale_of(layer))
            values = _rounded(weight, np.asarray(w, np.float32), PLAIN_DTYPES[name])
            advance(values.nbytes)
            return values

        stack = lru_cache(maxsize=3)(compute)  # gate, up and down of a layer's experts, asked for expert by expert

        def get(weight: str) -> np.ndarray:
            return stack(weight) if len(model.weights[weight].shape) == 3 else compute(weight)

        save_hf(folder, target, get, config=source.config, generation=source.generation, copy_texts=_texts_of(source))


def quantize_merged(merged: Path, out: Path, recipe: Recipe, *, show_progress: bool = False) -> QuantizedModel:
    """Quantizes what `merge_checkpoint` wrote, by a recipe without data.

    Args:
      merged: the folder with the plain weights.
      out: of `quantize`: the result is in a folder of another name until it is finished.

    Raises:
      ConfigError, CheckpointError: as of `quantize`.
    """
    source = resolve_source(str(merged))
    config = read_model_config(source)
    placement = Placement(Layout.load("single"), jax.devices()[:1])
    return quantize(source, config, placement, recipe, out, show_progress=show_progress)


def merged_dtype(source: CheckpointSource, dtype: MergedDtype) -> str:
    """What "auto" is for a checkpoint; any other dtype as it is."""
    if dtype != "auto":
        return dtype
    if "float16" in (source.config.get("dtype"), source.config.get("torch_dtype")):
        return "float16"
    return read_model_config(source).dtype


def _rounded(name: str, w: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = w.astype(dtype)
    if not np.isfinite(values).all():
        what = "are not finite" if not np.isfinite(w).all() else f"are too large for {dtype.name}; take bfloat16"
        raise ConfigError(f"{name}: values of the merged weight {what}")
    return values


@contextmanager
def _reader(source: CheckpointSource, model: AbstractModel) -> Iterator[Callable[[str], jax.Array]]:
    """What gives a weight by our name, in float32."""
    if source.weight_format == "orbax":
        weights = load_weights(source, model)
        yield weights.__getitem__
        return
    with OpenCheckpoint(source, model.config) as checkpoint:
        check_checkpoint(checkpoint, model)
        yield lambda name: jnp.asarray(read_weights(checkpoint, model, (name,))[name], jnp.float32)


def _texts_of(source: CheckpointSource) -> Callable[[Path], None]:
    return (
        Tokenizer.load(source.path).save
        if source.weight_format == "gguf"
        else partial(copy_text_files, source.directory)
    )
