"""Measures quantizing: GPTQ of one matrix, and a whole model with the shape of Qwen2.5-0.5B and random weights.

    python bench/quantize.py [--sequences 64] [--sequence-tokens 512] [--method auto] [--folder DIR]

For the matrix it prints seconds, and the relative output error of GPTQ and of rounding to nearest. The model is
quantized in its own process. For it, it prints the wall time and the peak memory beside the model's size in bfloat16.
Calibration uses random tokens, because time and memory do not depend on them. The figures go to
bench/results/quantize.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import write_result
from shapes import checkpoint

RUN = """
import hashlib, json, sys, time
from pathlib import Path
import jax, numpy as np
from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.quantize import quantize
from ryzjax.quant.recipe import Recipe
from ryzjax.sharding import Layout, Placement
folder, out, method, sequences, tokens = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
started = time.perf_counter()
source = resolve_source(folder)
config = model_config_from_hf(source.config, dtype="auto")
ids = np.random.default_rng(0).integers(0, config.vocab_size, (sequences + sequences // 8, tokens)).astype(np.int32)
calibration = Calibration(tokens=ids[:sequences], held_out=ids[sequences:], source="random", sha256="random")
placement = Placement(Layout.load("single"))
quantize(source, config, placement, Recipe(method=method), out, calibration=calibration).finish()
lines = Path("/proc/self/status").read_text().splitlines()
peak = int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"wall_s": time.perf_counter() - started, "peak_bytes": peak}))
"""


def measure_gptq(size: int, repeats: int) -> dict[str, float]:
    """Quantizes a square matrix with GPTQ over correlated inputs.

    Returns:
      The median seconds without the first run, which compiles, and the relative output errors of GPTQ and of rounding
      to nearest with and without searched scales.
    """
    import jax.numpy as jnp

    from ryzjax.quant.gptq import factorize, gptq
    from ryzjax.quant.grid import Grid, round_to_grid, search_grid

    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((size, size), np.float32) * (np.arange(1, size + 1)[:, None] ** -0.5)
    x = rng.standard_normal((4096, size), np.float32) @ mixing
    hessian = jnp.asarray(x.T @ x / len(x))
    w = jnp.asarray(rng.standard_normal((size, size), np.float32))
    groups = w.reshape(size, -1, 128)
    ones = jnp.ones(groups.shape[1:])

    def grid(search: bool) -> Grid:
        return search_grid(groups, ones, low=-8, high=7, symmetric=True, scale_dtype="bfloat16", search=search)

    def values(q: jnp.ndarray, grid: Grid) -> jnp.ndarray:
        return (q.reshape(groups.shape) * grid.scale[..., None]).reshape(w.shape)

    def error(rounded: jnp.ndarray) -> float:
        delta = rounded - w
        return float(jnp.sqrt(jnp.sum((delta @ hessian) * delta) / jnp.sum((w @ hessian) * w)))

    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        found = grid(search=True)
        q = gptq(w, factorize(hessian), found, low=-8, high=7).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds[1:]),
        "gptq_error": error(values(q, found)),
        "rtn_error": error(round_to_grid(groups, grid(search=False), -8, 7).reshape(w.shape)),
        "rtn_searched_error": error(round_to_grid(groups, found, -8, 7).reshape(w.shape)),
    }


def main() -> None:
    """Measures the matrix and the model, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences (default %(default)s)")
    parser.add_argument("--sequence-tokens", type=int, default=512, help="tokens of each (default %(default)s)")
    parser.add_argument("--method", default="auto", help="method of the recipe (default %(default)s)")
    parser.add_argument("--folder", default=None, help="folder for the temporary checkpoints")
    args = parser.parse_args()
    matrix = measure_gptq(2048, 5)
    print(f"GPTQ of 2048 x 2048, scales searched: {matrix}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model = checkpoint("qwen2.5-0.5b", Path(folder))
        model_bytes = (model / "model.safetensors").stat().st_size
        command = [sys.executable, "-c", RUN, str(model), str(Path(folder, "out")), args.method]
        command += [str(args.sequences), str(args.sequence_tokens)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(result.stdout.splitlines()[-1])
    figures["over_model_bytes"] = figures["peak_bytes"] - model_bytes
    print(
        f"0.5B model: {figures['wall_s']:.0f} s, peak {figures['peak_bytes'] / 1e9:.2f} GB, of a model of "
        f"{model_bytes / 1e9:.2f} GB"
    )
    shape = {"sequences": args.sequences, "sequence_tokens": args.sequence_tokens, "method": args.method}
    print(write_result("quantize", {"matrix": matrix, "model": {**shape, "model_bytes": model_bytes, **figures}}))


if __name__ == "__main__":
    main()
