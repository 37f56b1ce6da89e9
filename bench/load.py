"""Measures loading a 2 GB checkpoint of random weights, against reading the same file with `safetensors.numpy`.

    python bench/load.py [--repeats 5] [--folder DIR] [--weights int4]

Each load runs in its own process, and the two libraries take turns. The file is in the page cache, so the figures
compare the copy from the cache into arrays. Peak memory is that of the process minus what it held before loading. The
figures are printed as JSON: seconds, GB/s, peak memory relative to the size of the weights, and the ratio of the two
times. They go to bench/results/load.json. `--weights` adds a load that quantizes the weights; its GB/s count the bytes
of the file, and its peak is relative to the size of the quantized weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from record import write_result
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 14,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}

MEASURE = """
import sys, time, json
from pathlib import Path
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith(key)).split()[1]) * 1024
"""
OURS = (
    MEASURE
    + """
import jax
from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.loading import plan_weights
from ryzjax.sharding import Layout, Placement
source = resolve_source(sys.argv[1])
config = model_config_from_hf(source.config, dtype=sys.argv[2])
plan = plan_weights(source, config, Placement(Layout.load("single")), weights=sys.argv[3])
jax.numpy.zeros(8).block_until_ready()
held, started = memory("VmRSS"), time.perf_counter()
weights = plan.load()
seconds = time.perf_counter() - started
size = sum(w.nbytes for w in weights.values())
read = sum(spec.nbytes for spec in plan.stored.weights.values())
print(json.dumps({"seconds": seconds, "peak": (memory("VmHWM") - held) / size, "bytes": read}))
"""
)
THEIRS = (
    MEASURE
    + """
import ml_dtypes
from safetensors.numpy import load_file
held, started = memory("VmRSS"), time.perf_counter()
weights = load_file(sys.argv[1] + "/model.safetensors")
seconds = time.perf_counter() - started
size = sum(w.nbytes for w in weights.values())
print(json.dumps({"seconds": seconds, "peak": (memory("VmHWM") - held) / size, "bytes": size}))
"""
)


def write_checkpoint(folder: Path) -> None:
    """Writes a checkpoint of random weights in one file."""
    from ryzjax.checkpoint.families import HF_FAMILIES
    from ryzjax.checkpoint.hf.config import model_config_from_hf
    from ryzjax.models.registry import abstract_model
    from ryzjax.sharding import Layout, Placement

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = model_config_from_hf(CONFIG)
    rng = np.random.default_rng(0)
    block = rng.standard_normal(2**20, dtype=np.float32).astype(ml_dtypes.bfloat16)
    tensors = {}
    for name, spec in abstract_model(config, Placement(Layout.load("single"))).weights.items():
        (stored,) = HF_FAMILIES["llama"].weight(name, config, "model.", frozenset()).names
        tensors[stored] = np.resize(block, spec.shape)
    save_file(tensors, folder / "model.safetensors")


def measure(code: str, folder: Path, *options: str) -> dict[str, float]:
    """Runs one load in a new process and returns its figures."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *options], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures the loads in turn, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="loads of each kind (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="folder of the checkpoint, written if it has none (default: a temporary one)"
    )
    parser.add_argument("--weights", choices=["int8", "int4", "nf4"], help="also measure quantizing while loading")
    options = parser.parse_args()
    quantized = f"ryzjax, --weights {options.weights}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model.safetensors").is_file():
            write_checkpoint(folder)
        runs: dict[str, list[dict[str, float]]] = {"ryzjax": [], "ryzjax, cast to float32": [], "safetensors.numpy": []}
        if options.weights:
            runs[quantized] = []
        for _ in range(options.repeats):
            runs["safetensors.numpy"].append(measure(THEIRS, folder))
            runs["ryzjax"].append(measure(OURS, folder, "auto", "auto"))
            runs["ryzjax, cast to float32"].append(measure(OURS, folder, "float32", "auto"))
            if options.weights:
                runs[quantized].append(measure(OURS, folder, "auto", options.weights))
    figures: dict[str, object] = {"file_bytes": int(runs["safetensors.numpy"][0]["bytes"])}
    for name, results in runs.items():
        seconds = statistics.median(r["seconds"] for r in results)
        figures[name] = {
            "seconds": round(seconds, 3),
            "gb_s": round(results[0]["bytes"] / 1e9 / seconds, 2),
            "peak_over_model": round(max(r["peak"] for r in results), 3),
        }
    pairs = zip(runs["safetensors.numpy"], runs["ryzjax"], strict=True)
    figures["speed_ratio"] = round(statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs), 2)
    print(json.dumps(figures, indent=1))
    print(write_result("load", figures))


if __name__ == "__main__":
    main()
