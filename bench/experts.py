"""Measures the experts' matrix product of a mixture of experts: RyzJAX's loop over tiles against `jax.lax.ragged_dot`.

    python bench/experts.py [--experts 32] [--hidden 2048] [--inner 768] [--repeats 7]

The two take turns, for 8, 64 and 512 rows in float32 and bfloat16. Each case is printed as a line of JSON with both
medians in milliseconds and their ratio. The figures go to bench/results/experts.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from record import write_result

from ryzjax.bits import storage_dtype, to_bits
from ryzjax.ops.moe.grouped_matmul import grouped_matmul


def milliseconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Returns the milliseconds of one call, until its result is ready."""
    started = time.perf_counter()
    function(*arguments).block_until_ready()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Measures every case, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("experts", 32), ("hidden", 2048), ("inner", 768), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    functions = {"tiles": jax.jit(grouped_matmul), "ragged_dot": jax.jit(grouped_matmul.reference)}
    figures = []
    for dtype in (jnp.float32, jnp.bfloat16):
        shape = options.experts, options.inner, options.hidden
        weight = to_bits(jnp.asarray(rng.standard_normal(shape, np.float32), dtype), storage_dtype(dtype))
        for rows in (8, 64, 512):
            x = jnp.asarray(rng.standard_normal((rows, options.hidden), np.float32), dtype)
            sizes = np.bincount(rng.integers(0, options.experts, rows), minlength=options.experts)
            arguments = x, weight, jnp.asarray(sizes, jnp.int32)
            times: dict[str, list[float]] = {name: [] for name in functions}
            for repeat in range(options.repeats + 1):
                for name, function in functions.items():
                    took = milliseconds(function, *arguments)
                    if repeat:  # the first call compiles
                        times[name].append(took)
            medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
            hit = int((sizes > 0).sum())
            ratio = round(medians["ragged_dot"] / medians["tiles"], 1)
            figures.append(
                {"dtype": jnp.dtype(dtype).name, "rows": rows, "experts_hit": hit, **medians, "ratio": ratio}
            )
            print(json.dumps(figures[-1]))
    print(write_result("experts", {"shape": vars(options), "milliseconds": figures}))


if __name__ == "__main__":
    main()
