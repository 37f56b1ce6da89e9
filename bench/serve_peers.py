"""Measures RyzJAX's server against llama-server (llama.cpp) and, in bf16, `transformers serve` under the same load.

    python bench/serve_peers.py --trace AzureLLMInferenceTrace_conv.csv --llama-server path/to/llama-server

The lengths of prompts and outputs are those of the trace times --scale. The tokens are random and the same for all
servers. Every round has new ones, because llama-server keeps the KV cache of earlier prompts. The servers stay loaded
and take turns. Each has as many slots as the largest concurrency. The model has random weights (shapes.py), in a GGUF
file for llama.cpp. `transformers serve` needs `accelerate` and `openai`, and gets its prompts as text.

The table that is printed shows output tokens/s, the ratio of RyzJAX's to each server's, the time to the first token
(TTFT) and the time per output token (TPOT). The figures go to bench/results/serve-peers-BITS.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from gguf_checkpoint import gguf_checkpoint
from record import write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import SHAPES, checkpoint

RYZJAX = str(Path(sys.executable).with_name("ryzjax"))
TRANSFORMERS = str(Path(sys.executable).with_name("transformers"))
OURS = "ryzjax"
_READY_S = 300.0
_SHOWN = ("output_throughput", "median_ttft_ms", "median_tpot_ms")


def main() -> None:
    """Measures every concurrency, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--bits", choices=("bf16", "int8", "int4"), default="int8")
    parser.add_argument("--trace", required=True, help="file of request lengths, an Azure CSV or a Mooncake JSONL")
    parser.add_argument("--scale", type=float, default=0.25, help="factor of the trace's lengths (default %(default)s)")
    parser.add_argument("--most-input", type=int, default=896, help="longer prompts are cut to this many tokens")
    parser.add_argument("--most-output", type=int, default=128, help="longer outputs are cut to this many tokens")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="requests in flight")
    parser.add_argument("--requests", type=int, default=64, help="requests in a round; 8 at concurrency 1")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each concurrency (default %(default)s)")
    parser.add_argument(
        "--llama-server", default=shutil.which("llama-server"), help="path of llama-server (default: the one on PATH)"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ryzjax-bench")
    arguments = parser.parse_args()
    if not arguments.llama_server:
        parser.error("llama-server is not on PATH; give --llama-server PATH (llama.cpp builds it)")

    with ExitStack() as stack:
        urls = {name: stack.enter_context(_server(command)) for name, command in _commands(arguments).items()}
        seeds = itertools.count()
        for name, url in urls.items():
            _load(arguments, name, url, concurrency=2, requests=2, seed=next(seeds))  # warm-up
        figures = {concurrency: [] for concurrency in arguments.concurrency}
        rounds = [concurrency for concurrency in arguments.concurrency for _ in range(arguments.rounds)]
        for concurrency in track(rounds, description="measuring", console=Console(stderr=True)):
            count, seed = arguments.requests if concurrency > 1 else 8, next(seeds)
            figures[concurrency].append(
                {name: _load(arguments, name, url, concurrency, count, seed) for name, url in urls.items()}
            )
    table = Table(title=f"{arguments.shape}, {arguments.bits}: medians of {arguments.rounds} rounds")
    for column in ("in flight", "server", "output tokens/s", "ours to theirs", "TTFT ms", "TPOT ms"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for concurrency, measured in figures.items():
        _add_rows(table, concurrency, measured)
    Console(width=120).print(table)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("folder", "llama_server", "trace")}
    settings["trace"] = Path(arguments.trace).name
    cases = {f"concurrency {concurrency}": measured for concurrency, measured in figures.items()}
    print(write_result(f"serve-peers-{arguments.bits}", {"settings": settings, "cases": cases}))


def _commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command line of each server, without the host and the port."""
    model = checkpoint(arguments.shape, arguments.folder)
    slots, room = max(arguments.concurrency), arguments.most_input + arguments.most_output
    ours = [RYZJAX, "serve", str(model), "--dtype", "bfloat16", "--weights", arguments.bits]
    ours += ["--max-sequences", str(slots), "--max-context-tokens", str(room), "--max-queue", "64"]
    llama_cpp = [arguments.llama_server, "-m", str(gguf_checkpoint(model, arguments.bits)), "-fa", "on", "--no-webui"]
    llama_cpp += ["-np", str(slots), "-c", str(slots * room), "-b", "512", "-ub", "512", "-t", str(os.cpu_count())]
    commands = {OURS: ours, "llama.cpp": llama_cpp}
    if arguments.bits == "bf16":
        commands["transformers"] = [TRANSFORMERS, "serve", str(model), "--continuous-batching", "--device", "cpu"]
    return commands


@contextmanager
def _server(command: Sequence[str]) -> Iterator[str]:
    """Runs a server while the context lasts. The value is its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
        try:
            _wait(process, url, log.fileno())
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait(process: subprocess.Popen, url: str, log: int) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            os.lseek(log, 0, os.SEEK_SET)
            tail = os.read(log, 1 << 20).decode(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args} ended with status {process.returncode}:\n{tail}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{process.args} did not answer within {_READY_S:.0f} s")


def _load(
    arguments: argparse.Namespace, name: str, url: str, concurrency: int, requests: int, seed: int
) -> dict[str, float]:
    """Runs one round of `ryzjax bench serve` against a server and returns its figures."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [RYZJAX, "bench", "serve", "--base-url", url, "--output", str(output), "--warmup", "0"]
        command += ["--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--trace", arguments.trace]
        command += ["--trace-scale", str(arguments.scale), "--max-input-tokens", str(arguments.most_input)]
        command += ["--max-output-tokens", str(arguments.most_output), "--seed", str(seed)]
        if name == "transformers":
            # It lists the models of the hub's cache instead of the one that it serves, so the model must be named.
            command += [
                "--prompts",
                "text",
                "--no-ignore-eos",
                "--model",
                str(checkpoint(arguments.shape, arguments.folder)),
            ]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            raise RuntimeError(f"{name} failed: {told.stdout[-2000:]}{told.stderr[-2000:]}")
        report = json.loads(output.read_text(encoding="utf-8"))
    return {name: report[name] for name in (*_SHOWN, "total_input_tokens", "total_output_tokens", "duration")}


def _add_rows(table: Table, concurrency: int, rounds: Sequence[dict[str, dict[str, float]]]) -> None:
    for name in rounds[0]:
        ratio = statistics.median(r[OURS]["output_throughput"] / r[name]["output_throughput"] for r in rounds)
        cells = [f"{statistics.median(r[name][figure] for r in rounds):.1f}" for figure in _SHOWN]
        table.add_row(str(concurrency), name, cells[0], "" if name == OURS else f"{ratio:.2f}", *cells[1:])


if __name__ == "__main__":
    main()
