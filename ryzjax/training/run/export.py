"""Writes the result of a run: an adapter in PEFT's layout, or a model in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from ryzjax.checkpoint.hf.save import in_dtype, save_hf
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.loading.open_model import OpenModel
from ryzjax.loading.text_files import copy_text_files
from ryzjax.lora.adapter import Adapter, BaseQuantization
from ryzjax.lora.merge import difference
from ryzjax.lora.model import weight_of
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.stacked import StackedModel
from ryzjax.qarray import QArray, dequantize
from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.start.training_start import TrainingStart

__all__ = ["export_adapter", "export_model", "text_files_of"]


def export_adapter(
    folder: Path, opened: OpenModel, start: TrainingStart, params: dict, *, rounding: BaseQuantization | None = None
) -> tuple[Path, Adapter]:
    """Writes `folder`/adapter, and `folder`/base if the adapter belongs to a base that training changed.

    A PiSSA adapter over a plain base is written as the difference to the update it started from, which fits the
    unchanged model. If the base was quantized together with the adapter (LoftQ, PiSSA), that base is written beside the
    adapter.

    Args:
      folder: Folder of the run.
      opened: The base model.
      start: What the run started from.
      params: Trained arrays.
      rounding: How the base was quantized while loading. Written with an adapter that belongs to that base.

    Returns:
      The adapter's folder, and the adapter.

    Raises:
      CheckpointError: A file cannot be written.
    """
    model = start.model
    assert isinstance(model, LoraModel)
    adapter = replace(model.adapter(params, base_model=opened.source.name), base_quantization=rounding)
    base_name = opened.source.name
    if start.start_updates is not None:
        plain = Adapter(config=model.lora, weights=start.start_updates, base_model=base_name)
        if opened.model.quantization or model.lora.use_dora:
            base_name = str(_export_base(folder / "base", opened, start))
            adapter = _for_written_base(adapter, base_name)
        else:
            adapter = difference(adapter, plain)
    write_adapter(folder / "adapter", adapter, opened.model, base_model=base_name)
    opened.tokenizer.save(folder / "adapter")
    return folder / "adapter", adapter


def _for_written_base(adapter: Adapter, base_model: str) -> Adapter:
    """Returns the adapter for the plain base that is written beside it, whatever its `init` was."""
    config = replace(adapter.config, init="default")
    return replace(adapter, config=config, base_model=base_model, base_quantization=None)


def export_model(
    folder: Path,
    start: TrainingStart,
    params: Mapping[str, jax.Array],
    *,
    dtype: str,
    config: Mapping[str, object],
    generation: Mapping[str, object] | None,
    copy_texts: Callable[[Path], None],
) -> Path:
    """Writes `folder`/model: config.json, safetensors and the tokenizer.

    Args:
      folder: Folder of the run.
      start: What the run started from.
      params: Trained arrays.
      dtype: Dtype to write the weights in, whatever dtype the run computed in.
      config: Content of config.json.
      generation: Content of generation_config.json; None for no such file.
      copy_texts: Writes the tokenizer's files into a folder.

    Returns:
      The model's folder.

    Raises:
      CheckpointError: A file cannot be written.
      ConfigError: Models of this family cannot be saved.
    """
    model = start.model
    assert isinstance(model, FullModel)
    written = in_dtype(model.model, dtype)
    weights = _host_weights(model.stacked, params, written)
    out = folder / "model"
    save_hf(out, written, weights.__getitem__, config=config, generation=generation, copy_texts=copy_texts)
    return out


def text_files_of(opened: OpenModel) -> Callable[[Path], None]:
    """Returns a function that copies a model's tokenizer files into a folder."""
    return partial(copy_text_files, opened.source.directory)


def _host_weights(
    stacked: StackedModel, params: Mapping[str, jax.Array], written: AbstractModel
) -> dict[str, np.ndarray]:
    """Returns weight name -> master on the host, in the dtype it is written in."""
    return {
        name: np.asarray(jax.device_get(array)).astype(np.dtype(written.weights[name].dtype))
        for name, array in stacked.unstack(params)
    }


def _export_base(folder: Path, opened: OpenModel, start: TrainingStart) -> Path:
    """Writes the base as a plain model in the model's dtype, because no quantized format holds every quantization of a
    base."""
    plain = opened.plan.stored
    weights = dict(start.model.stacked.unstack(start.frozen.weights))

    def get(name: str) -> np.ndarray:
        module = name.removesuffix(".weight")
        values = weight_of(opened.model, weights, module) if module in opened.model.quantization else weights[name]
        dense = dequantize(values) if isinstance(values, QArray) else values
        return np.asarray(jax.device_get(dense)).astype(np.dtype(plain.weights[name].dtype))

    save_hf(
        folder,
        plain,
        get,
        config=opened.source.config,
        generation=opened.source.generation,
        copy_texts=text_files_of(opened),
    )
    return folder
