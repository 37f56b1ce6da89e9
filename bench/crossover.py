"""Measures the number of rows above which XLA's product is faster than the native kernels' product on a CPU.

    python bench/crossover.py [--rows 1 8 64 512 2048] [--rounds 5]

XLA and the native kernels take turns in one process. Each multiplies with several copies of a matrix, which together do
not fit in the caches. The table that is printed shows XLA's time divided by the native time, for each matrix, weight
format and number of rows: above 1 the native kernels are faster. The figures go to bench/results/crossover-ISA.json.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from record import write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ryzjax.native.library import isa
from ryzjax.native.linear import native_project
from ryzjax.ops.linear.quantized import project_quantized
from ryzjax.ops.linear.reference import project_plain
from ryzjax.qarray import QArray, QFormat
from ryzjax.quant.quantize_matrix import quantize_matrix

MATRICES = {"gate and up, 896 -> 9728": (896, 9728), "down, 4864 -> 896": (4864, 896), "qkv, 896 -> 1152": (896, 1152)}
FORMATS = {
    "bf16": None,
    "int8": QFormat(kind="int8", group=64, scale_dtype="bfloat16"),
    "int4": QFormat(kind="int4", group=64, pack=64, scale_dtype="bfloat16"),
}
COPIES = 6


def main() -> None:
    """Measures every case, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 8, 64, 256, 512, 2048], help="rows of the activations"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (default %(default)s)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    figures: dict[str, dict[str, float]] = {}
    table = Table("matrix", "weights", *(f"{rows} rows" for rows in arguments.rows), title=f"XLA / native ({isa()})")
    cases = [(matrix, weights) for matrix in MATRICES for weights in FORMATS]
    for matrix, weights in track(cases, description="measuring", console=Console(stderr=True)):
        k, n = MATRICES[matrix]
        dense = [jnp.asarray(rng.standard_normal((n, k), np.float32), jnp.bfloat16) for _ in range(COPIES)]
        format = FORMATS[weights]
        copies = dense if format is None else [quantize_matrix(matrix, w, format) for w in dense]
        ratios = {}
        for rows in arguments.rows:
            x = jnp.asarray(rng.standard_normal((rows, k), np.float32), jnp.bfloat16)
            ratios[f"{rows} rows"] = _ratio(x, copies, arguments.rounds)
        figures[f"{matrix}, {weights}"] = ratios
        table.add_row(matrix, weights, *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console(width=140).print(table)
    print(write_result(f"crossover-{isa()}", {"isa": isa(), "xla_to_native": figures}))


def _ratio(x: jax.Array, copies: list[jax.Array] | list[QArray], rounds: int) -> float:
    """Returns XLA's time divided by the native kernels' time, the median of rounds in which both run."""

    def by_xla(x: jax.Array, weight: jax.Array | QArray) -> jax.Array:
        return project_quantized(x, weight) if isinstance(weight, QArray) else project_plain(x, weight)

    programs = [jax.jit(run).lower(x, copies[0]).compile() for run in (lambda x, w: native_project(x, [w])[0], by_xla)]
    ratios = []
    for _ in range(rounds + 1):  # the first round is a warm-up
        seconds = []
        for program in programs:
            started = time.perf_counter()
            for weight in copies:
                program(x, weight).block_until_ready()
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    main()
