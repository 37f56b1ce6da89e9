"""Loads a plain checkpoint and quantizes its matrices on the way.

On a CPU, the native kernel quantizes panels of rows. Each thread reads a panel of the checkpoint into a buffer of its
own and quantizes it into its place in the result, so all cores work, and the host never holds a whole plain matrix. On
other devices and without the kernel, XLA quantizes one matrix while the next one is read.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.loading.buffers import adopted, aligned_empty, placed
from ryzjax.loading.load import WeightReader, weight_reader
from ryzjax.loading.progress import byte_progress
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.weight_spec import WeightSpec
from ryzjax.qarray import LEAVES, QFormat
from ryzjax.quant.encode_matrix import not_finite
from ryzjax.quant.quantize_matrix import quantize_matrix
from ryzjax.quant.quantized_rows import QuantizedRows

__all__ = ["load_quantized"]

Advance = Callable[[int], None]


def load_quantized(
    source: CheckpointSource, stored: AbstractModel, model: AbstractModel, *, show_progress: bool = False
) -> dict[str, jax.Array]:
    """Reads every weight of a model, and quantizes the matrices that are quantized in `model`.

    Args:
      source: The checkpoint's files.
      stored: The abstract model of the files, without quantized matrices.
      model: The abstract model to fill.
      show_progress: Whether to show a progress bar on stderr. It counts the bytes of `stored`.

    Returns:
      Weight name -> array, in the order of `model.weights`.

    Raises:
      CheckpointError: A tensor is missing, unexpected, or of another shape or dtype.
      ConfigError: A matrix to be quantized has NaN or infinite weights.
    """
    formats = {
        name: format
        for name in stored.weights
        if (format := model.quantization.get(name.removesuffix(".weight"))) is not None
    }
    is_native = model.placement.platform == "cpu" and all(
        QuantizedRows.refusal(np.dtype(stored.weights[name].dtype), format) is None for name, format in formats.items()
    )
    total = sum(spec.nbytes for spec in stored.weights.values())
    with (
        weight_reader(source, stored) as reader,
        byte_progress("Quantizing weights", total, show=show_progress) as advance,
    ):
        load = _load_natively if is_native else _load_by_xla
        weights = load(reader, stored.weights, model.weights, formats, advance)
    return {name: weights[name] for name in model.weights}


def _load_natively(
    reader: WeightReader,
    stored: Mapping[str, WeightSpec],
    model: Mapping[str, WeightSpec],
    formats: Mapping[str, QFormat],
    advance: Advance,
) -> dict[str, jax.Array]:
    buffers = threading.local()

    def fill(name: str, rows: slice, quantized: QuantizedRows) -> int:
        spec = stored[name]
        shape = (rows.stop - rows.start, spec.shape[1])
        count, dtype = math.prod(shape), np.dtype(spec.dtype)
        buffer: np.ndarray | None = getattr(buffers, "panel", None)
        if buffer is None or buffer.nbytes < count * dtype.itemsize:
            buffer = buffers.panel = aligned_empty((count * dtype.itemsize,), np.dtype(np.uint8))
        panel = buffer[: count * dtype.itemsize].view(dtype).reshape(shape)
        reader.rows(name, rows, panel)
        return quantized.fill(rows, panel)

    weights: dict[str, jax.Array] = {}
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="quantize")
    try:
        # The results are allocated here, but take up memory only once a thread writes to them.
        plain: dict[str, Future[jax.Array]] = {}
        matrices: dict[str, tuple[QuantizedRows, list[tuple[slice, Future[int]]]]] = {}
        for name in reader.names:
            if (format := formats.get(name)) is None:
                plain[name] = pool.submit(reader.weight, name)
                continue
            n, k = stored[name].shape
            quantized = QuantizedRows((n, k), format, aligned_empty)
            panels = [(rows, pool.submit(fill, name, rows, quantized)) for rows in QuantizedRows.panels((n, k))]
            matrices[name] = quantized, panels
        for name in reader.names:
            if name in plain:
                array = plain.pop(name).result()
                weights[name] = jax.device_put(array, model[name].sharding)
                advance(stored[name].nbytes)
                continue
            quantized, panels = matrices.pop(name)
            count = 0
            for rows, filled in panels:
                count += filled.result()
                advance((rows.stop - rows.start) * stored[name].nbytes // stored[name].shape[0])
            if count:
                raise not_finite(name, count)
            for leaf, part in quantized.leaves().items():
                place = adopted if leaf == "values" else placed
                weights[f"{name}.{leaf}"] = place(part, model[f"{name}.{leaf}"].sharding)
    finally:
        pool.shutdown(cancel_futures=True)
    return weights


def _load_by_xla(
    reader: WeightReader,
    stored: Mapping[str, WeightSpec],
    model: Mapping[str, WeightSpec],
    formats: Mapping[str, QFormat],
    advance: Advance,
) -> dict[str, jax.Array]:
    weights: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        ahead = pool.submit(reader.weight, reader.names[0])
        for name, following in zip(reader.names, (*reader.names[1:], None), strict=True):
            array = ahead.result()
            if following is not None:
                ahead = pool.submit(reader.weight, following)
            if (format := formats.get(name)) is None:
                weights[name] = jax.device_put(array, model[name].sharding)
            else:
                quantized = quantize_matrix(name, array, format)
                for leaf in LEAVES:
                    if (part := getattr(quantized, leaf)) is not None:
                        weights[f"{name}.{leaf}"] = placed(np.asarray(part), model[f"{name}.{leaf}"].sharding)
            advance(stored[name].nbytes)
    return weights
