"""Measures how fast this machine reads memory and multiplies: the tables of `ryzjax info --measure`.

The products are those of a model's linear layers: `y = x W^T` with a matrix of 4096 out and 2048 in features. Every
product reads another copy of the matrix, and the copies together are several times as large as the caches, so weights
come from memory as they do in a decode step. Programs are compiled before they are timed.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from ryzjax.native.library import isa
from ryzjax.native.linear import native_quantized_refusal
from ryzjax.ops.linear.project import PROJECT, project_on_device
from ryzjax.qarray import QArray, QFormat

__all__ = ["Product", "measure_products", "product_table", "stream_bytes_a_second", "working_set_bytes"]

Activations = Literal["bf16", "int8"]
_FORMATS: dict[str, QFormat | None] = {
    "bf16": None,
    "int8": QFormat(kind="int8", group=64, scale_dtype="bfloat16"),
    "int4": QFormat(kind="int4", group=64, pack=64, scale_dtype="bfloat16"),
}
"""The formats of `--weights bf16 | int8 | int4` with the default group size."""
_FEW_ROWS = 64
"""With fewer rows a call multiplies with all copies, so that starting a program is a small part of its time."""
_ROUNDS = 3
"""The fewest calls that a cell is the median of."""
Matrices = Sequence[jax.Array | QArray]


@dataclass(frozen=True, kw_only=True)
class Product:
    """One cell of the table: the speed of `y = x W^T` on this machine, or why it is not possible.

    Attributes:
      weights: The format of W: "bf16", "int8" or "int4".
      activations: "bf16", or "int8" to quantize every 32 activations to int8 first.
      rows: The number of rows of x.
      implementation: What multiplies: "xla", or "native" with the instruction set. None if it is not possible.
      weight_bytes: The bytes of W.
      flops: The floating-point operations of the product, 2 M N K.
      seconds: The median time of one product. None if it is not possible.
      refusal: Why it is not possible, or None if it is.
    """

    weights: str
    activations: Activations
    rows: int
    implementation: str | None
    weight_bytes: int
    flops: int
    seconds: float | None
    refusal: str | None = None


def working_set_bytes() -> int:
    """Returns how many bytes to read in turn so that none comes from a cache.

    It is 4 times the largest cache, but at least 128 MiB and at most 1 GiB.
    """
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return min(max(4 * max(sizes), 2**27), 2**30)


def stream_bytes_a_second(num_bytes: int, *, repeats: int = 5) -> float:
    """Returns the bytes per second at which all cores together sum arrays, the best of several runs.

    Args:
      num_bytes: The total size of the arrays, which should be larger than the caches.
      repeats: The number of runs.
    """
    cores = os.cpu_count() or 1
    arrays = [np.ones(max(1, num_bytes // 8 // cores), np.int64) for _ in range(cores)]
    read = sum(array.nbytes for array in arrays)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(np.sum, arrays))
            best = max(best, read / (time.perf_counter() - started))
    return best


def measure_products(
    *,
    n: int = 4096,
    k: int = 2048,
    rows: Sequence[int] = (1, 8, 512),
    num_bytes: int | None = None,
    cell_seconds: float = 0.08,
) -> list[Product]:
    """Measures the products with bf16, int8 and int4 weights, with bf16 and with int8 activations.

    Both kinds of activations take turns, so that other work on the machine slows both.

    Args:
      n, k: The out and in features of the matrix; k is a multiple of 64.
      rows: The numbers of rows of x.
      num_bytes: The total size of the copies of a matrix; by default `working_set_bytes()`.
      cell_seconds: The time for one cell. At least 3 calls are made even if they take longer.

    Returns:
      One product for each kind of weights and activations and each number of rows. Activations that are not possible
      here have a refusal.
    """
    rng = np.random.default_rng(0)
    num_bytes = working_set_bytes() if num_bytes is None else num_bytes
    products: list[Product] = []
    for weights, format in _FORMATS.items():
        copies: Matrices = _copies(rng, format, n, k, num_bytes)
        kinds: dict[Activations, Matrices] = {"bf16": copies}
        if format is not None:
            integer = replace(format, activations="int8_groups")
            kinds["int8"] = [replace(copy, format=integer) for copy in copies if isinstance(copy, QArray)]
        refusals = {activations: _refusal(matrices[0], k) for activations, matrices in kinds.items()}
        possible = [matrices for activations, matrices in kinds.items() if refusals[activations] is None]
        for count in rows:
            x = jnp.asarray(rng.standard_normal((count, k), np.float32), jnp.bfloat16)
            seconds = iter(_median_seconds(x, possible, cell_seconds))
            for activations, matrices in kinds.items():
                refusal = refusals[activations]
                products.append(
                    Product(
                        weights=weights,
                        activations=activations,
                        rows=count,
                        implementation=None if refusal else _implementation(x, matrices[0]),
                        weight_bytes=matrices[0].nbytes,
                        flops=2 * count * n * k,
                        seconds=None if refusal else next(seconds),
                        refusal=refusal,
                    )
                )
    return sorted(products, key=lambda one: (list(_FORMATS).index(one.weights), one.activations, one.rows))


def _copies(rng: np.random.Generator, format: QFormat | None, n: int, k: int, num_bytes: int) -> Matrices:
    """Returns at least 2 copies of a matrix of random numbers, each in its own memory, of `num_bytes` in all."""
    if format is None:
        dense = rng.standard_normal((n, k), np.float32).astype(jnp.bfloat16)
        return [jnp.array(dense) for _ in range(max(2, math.ceil(num_bytes / dense.nbytes)))]
    shapes = format.leaf_shapes((n, k))
    count = max(2, math.ceil(num_bytes / format.nbytes((n, k))))
    values = rng.integers(0, 256, shapes["values"][0], np.uint8).view(shapes["values"][1])
    scales = np.full(shapes["scales"][0], 0.01, jnp.bfloat16).view(shapes["scales"][1])
    return [QArray(format=format, values=jnp.array(values), scales=jnp.array(scales)) for _ in range(count)]


def _refusal(weight: jax.Array | QArray, k: int) -> str | None:
    """Returns why a model cannot run with this weight's activations here, as `WeightPlan.with_activations` does."""
    if not isinstance(weight, QArray) or weight.format.activations is None:
        return None
    if jax.default_backend() != "cpu":
        return f"the integer kernels are for a CPU, and the devices are {jax.default_backend()}"
    return native_quantized_refusal(jnp.dtype(jnp.bfloat16), weight.format, k)


def _implementation(x: jax.Array, weight: jax.Array | QArray) -> str:
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    chosen = [kernel.name for kernel in PROJECT.choose(x, (weight,)) if kernel.platform == platform]
    return f"{chosen[0]} ({isa()})" if chosen else "xla"


def _median_seconds(x: jax.Array, kinds: Sequence[Matrices], cell_seconds: float) -> list[float]:
    """Returns the median time of one product for each kind of matrices. The kinds take turns, and so do the copies."""
    together = len(kinds[0]) if x.shape[0] < _FEW_ROWS else 1

    def multiply(x: jax.Array, weights: Matrices) -> jax.Array:
        out = jnp.zeros((), jnp.float32)
        for weight in weights:
            # The next product waits for this one, as it would in a model: XLA may run independent ones side by side.
            (y,) = project_on_device(x + (0 * out).astype(x.dtype), [weight])
            out = y[0, 0]
        return out

    programs = [jax.jit(multiply).lower(x, matrices[:together]).compile() for matrices in kinds]
    seconds: list[list[float]] = [[] for _ in kinds]
    for program, matrices in zip(programs, kinds, strict=True):
        program(x, matrices[-together:]).block_until_ready()
    finish = time.perf_counter() + cell_seconds * len(kinds)
    first = 0
    while len(seconds[0]) < _ROUNDS or time.perf_counter() < finish:
        for i, (program, matrices, times) in enumerate(zip(programs, kinds, seconds, strict=True)):
            # The kinds share the copies. Each reads others than the one before it, which the cache may still hold.
            at = (first + i * len(matrices) // len(kinds)) % len(matrices) if together == 1 else 0
            group = matrices[at : at + together]
            started = time.perf_counter()
            program(x, group).block_until_ready()
            times.append((time.perf_counter() - started) / together)
        first += 1
    return [statistics.median(times) for times in seconds]


def product_table(products: Sequence[Product]) -> Table:
    """Returns a table with a line for each kind of weights and activations, and a column for each number of rows.

    A cell has the milliseconds of one product. Below 64 rows it also has the GB/s at which weights are read, from
    64 rows on the GFLOP/s. The caption has the ratios of both kinds of activations, and the reasons of refusals.
    """
    # Without frames, a line fits in a terminal of 80 columns.
    table = Table(
        title="y = x W^T, with W from memory", title_justify="left", box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("weights", "activations", "by"):
        table.add_column(column)
    for count in sorted({product.rows for product in products}):
        unit = "ms, GB/s" if count < _FEW_ROWS else "ms, GFLOP/s"
        table.add_column(f"{count} row{'s' if count > 1 else ''}\n{unit}", justify="right", no_wrap=True)
    refusals: dict[str, None] = {}
    for weights, activations in dict.fromkeys((product.weights, product.activations) for product in products):
        line = [one for one in products if (one.weights, one.activations) == (weights, activations)]
        by = ", ".join(dict.fromkeys(one.implementation or "-" for one in line))
        table.add_row(weights, activations, by, *map(_cell, sorted(line, key=lambda one: one.rows)))
        refusals |= {f"{activations} activations: {one.refusal}": None for one in line if one.refusal}
    table.caption = "\n".join([*_ratios(products), *refusals])
    table.caption_justify = "left"
    return table


def _cell(product: Product) -> str:
    if product.seconds is None:
        return "refused"
    work = product.weight_bytes if product.rows < _FEW_ROWS else product.flops
    return f"{product.seconds * 1e3:.2f}, {work / product.seconds / 1e9:.1f}"


def _ratios(products: Sequence[Product]) -> list[str]:
    """Returns a sentence for each kind of weights: how many times as fast int8 activations are as bf16 ones."""
    seconds = {(one.weights, one.activations, one.rows): one.seconds for one in products}
    sentences = []
    for weights in dict.fromkeys(one.weights for one in products):
        ratios = []
        for rows in dict.fromkeys(one.rows for one in products):
            plain, integer = seconds.get((weights, "bf16", rows)), seconds.get((weights, "int8", rows))
            if plain is not None and integer is not None:
                ratios.append(f"{plain / integer:.2f}x at {rows}")
        if ratios:
            sentences.append(f"{weights} weights: speed of int8 over bf16 activations {', '.join(ratios)} rows")
    return sentences
