"""An adapter added into the weights of a checkpoint, plain or quantized, and written: plain, or rounded to few bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ryzjax.checkpoint.hf_config import model_config_from_hf
from ryzjax.checkpoint.load import check_checkpoint, load_weights, read_weights
from ryzjax.checkpoint.opened import OpenCheckpoint
from ryzjax.checkpoint.orbax import copy_text_files
from ryzjax.checkpoint.progress import byte_progress
from ryzjax.checkpoint.save_hf import save_hf
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError
from ryzjax.lora.adapter import Adapter, check_adapter
from ryzjax.lora.merge import merged
from ryzjax.models.registry import AbstractModel, abstract_model
from ryzjax.quant.quantize import QuantizedModel, quantize
from ryzjax.quant.recipe import Recipe
from ryzjax.sharding import Layout, Placement

__all__ = ["MergedDtype", "merge_and_quantize", "merge_checkpoint", "merged_dtype"]

MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of the weights that are written; auto: the checkpoint's own, and of a quantized one what it is computed in."""

_DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def merge_checkpoint(
    source: CheckpointSource,
    adapter: Adapter,
    folder: Path,
    *,
    dtype: MergedDtype = "auto",
    show_progress: bool = False,
) -> None:
    """Writes `source` with an adapter in its weights: config, tokenizer, and safetensors of plain weights.

    Each adapted matrix is read as float32 (dequantized, where it is quantized), added to in float32, and rounded once.
    One tensor is in memory at a time. Of a multimodal model the text model is written.

    Args:
      source: the base; whatever format it has.
      folder: to be made.
      dtype: of all weights written.

    Raises:
      ConfigError: the adapter does not fit the model; a weight that the dtype cannot hold; a family that cannot be
        written as Hugging Face has it.
      CheckpointError: damaged files, or a disk that is full.
    """
    name = merged_dtype(source, dtype)
    config = model_config_from_hf(source.config, source.generation, dtype="float32", source=source.config_name)
    model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
    check_adapter(adapter, model.linears, name=adapter.base_model or "adapter")
    target = _of_dtype(model, name)
    total = sum(spec.nbytes for spec in target.weights.values())
    with _reader(source, model) as read, byte_progress("Merging", total, show=show_progress) as advance:

        def compute(weight: str) -> np.ndarray:
            w, layer = read(weight), weight.removesuffix(".weight")
            if weight.endswith(".weight") and layer in adapter.weights:
                w = merged(w, adapter.weights[layer], adapter.config.scale_of(layer))
            values = _rounded(weight, np.asarray(w), _DTYPES[name])
            advance(values.nbytes)
            return values

        stack = lru_cache(maxsize=3)(compute)  # gate, up and down of a layer's experts, asked for expert by expert

        def get(weight: str) -> np.ndarray:
            return stack(weight) if len(model.weights[weight].shape) == 3 else compute(weight)

        save_hf(folder, target, get, config=source.config, generation=source.generation, copy_texts=_texts_of(source))


def merge_and_quantize(
    source: CheckpointSource,
    adapter: Adapter,
    out: Path,
    recipe: Recipe,
    *,
    dtype: MergedDtype = "auto",
    show_progress: bool = False,
) -> QuantizedModel:
    """Merges into plain weights in a folder beside `out`, quantizes them by a recipe without data, and removes them.

    Args:
      source, adapter, dtype: as of `merge_checkpoint`.
      out: of `quantize`: the result is in a folder of another name until it is finished.

    Raises:
      ConfigError, CheckpointError: as of `merge_checkpoint` and `quantize`.
    """
    plain = out.with_name(out.name + ".merged")
    if plain.exists():
        raise ConfigError(f"{plain} exists; it is left from another run: remove it")
    try:
        merge_checkpoint(source, adapter, plain, dtype=dtype, show_progress=show_progress)
        merged = resolve_source(str(plain))
        config = model_config_from_hf(merged.config, merged.generation, source=merged.config_name)
        placement = Placement(Layout.load("single"), jax.devices()[:1])
        return quantize(merged, config, placement, recipe, out, show_progress=show_progress)
    finally:
        shutil.rmtree(plain, ignore_errors=True)


def merged_dtype(source: CheckpointSource, dtype: MergedDtype) -> str:
    """What "auto" is for a checkpoint; any other dtype as it is."""
    if dtype != "auto":
        return dtype
    if "float16" in (source.config.get("dtype"), source.config.get("torch_dtype")):
        return "float16"
    return model_config_from_hf(source.config, source.generation, source=source.config_name).dtype


def _of_dtype(model: AbstractModel, dtype: str) -> AbstractModel:
    """The model as it is written: the same weights in another dtype (float16 too, which models here are not run in)."""
    config = replace(model.config, dtype=cast("Literal['float32']", dtype))
    specs = {name: replace(spec, dtype=_DTYPES[dtype]) for name, spec in model.weights.items()}
    return replace(model, config=config, weights=specs)


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
