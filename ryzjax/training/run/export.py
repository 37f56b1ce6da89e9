"""What a run leaves: an adapter as PEFT stores it, or a whole model as Hugging Face does."""

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
from ryzjax.qarray import QArray, dequantize
from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.start.start import Beginning, host_weights

__all__ = ["export_adapter", "export_model", "text_files_of"]


def export_adapter(
    folder: Path, opened: OpenModel, beginning: Beginning, params: dict, *, rounding: BaseQuantization | None = None
) -> tuple[Path, Adapter]:
    """Writes `folder`/adapter, and `folder`/base where the adapter belongs to a base that is no longer the model's.

    An adapter that began with the largest parts of a plain base (PiSSA) is written as the difference to its beginning,
    which fits the model as it is. A quantized base that was made together with the adapter (LoftQ, PiSSA) is written
    beside it.

    Args:
      rounding: of the base as it was loaded; written with an adapter that belongs to that base.

    Raises:
      CheckpointError: it cannot be written.
    """
    model = beginning.model
    assert isinstance(model, LoraModel)
    adapter = replace(model.adapter(params, base_model=opened.source.name), base_quantization=rounding)
    base_name = opened.source.name
    if beginning.initial is not None:
        plain = Adapter(config=model.lora, weights=beginning.initial, base_model=base_name)
        if opened.model.quantization or model.lora.use_dora:
            base_name = str(_export_base(folder / "base", opened, beginning))
            adapter = _without_beginning(adapter, base_name)
        else:
            adapter = difference(adapter, plain)
    write_adapter(folder / "adapter", adapter, opened.model, base_model=base_name)
    opened.tokenizer.save(folder / "adapter")
    return folder / "adapter", adapter


def _without_beginning(adapter: Adapter, base_model: str) -> Adapter:
    """The adapter for the plain base that was written beside it, whatever it began as."""
    config = replace(adapter.config, init="default")
    return replace(adapter, config=config, base_model=base_model, base_quantization=None)


def export_model(
    folder: Path,
    beginning: Beginning,
    params: Mapping[str, jax.Array],
    *,
    dtype: str,
    config: Mapping[str, object],
    generation: Mapping[str, object] | None,
    copy_texts: Callable[[Path], None],
) -> Path:
    """Writes `folder`/model: config.json, safetensors, tokenizer.

    Args:
      dtype: of the weights that are written, whatever the model is computed in.
      config, generation, copy_texts: as of `save_hf`.

    Raises:
      CheckpointError: it cannot be written.
      ConfigError: a family that cannot be saved so.
    """
    model = beginning.model
    assert isinstance(model, FullModel)
    written = in_dtype(model.model, dtype)
    weights = host_weights(model.stacked, params, written)
    out = folder / "model"
    save_hf(out, written, weights.__getitem__, config=config, generation=generation, copy_texts=copy_texts)
    return out


def text_files_of(opened: OpenModel) -> Callable[[Path], None]:
    """What copies a model's tokenizer files."""
    return partial(copy_text_files, opened.source.directory)


def _export_base(folder: Path, opened: OpenModel, beginning: Beginning) -> Path:
    """The base as a plain model, in the model's dtype: no quantized format has all that a base may be rounded to."""
    plain = opened.plan.stored
    weights = dict(beginning.model.stacked.unstack(beginning.frozen.weights))

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
