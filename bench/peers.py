"""Measures decode and prefill of RyzJAX against llama.cpp and transformers + torch, on the same random weights.

    python bench/peers.py [--shape qwen2.5-0.5b] [--bits bf16 int8 int4] [--rounds 3] [--long]

The engines of one bit width stay loaded in their own processes and take turns, so that a change in the machine's speed
affects all of them. Medians and ratios come from the same rounds. torch runs only in bf16. The table that is printed
shows milliseconds, the ratios of the peers' times to RyzJAX's, and how fast RyzJAX reads its weights relative to the
memory speed that was measured in the same rounds. The figures go to bench/results/peers-SHAPE.json. This needs the
`bench` extra.

To compare on AVX2 where the machine has AVX-512, build llama-cpp-python with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON", and set
RYZJAX_NATIVE_ISA=avx2, XLA_FLAGS=--xla_cpu_max_isa=AVX2, ONEDNN_MAX_CPU_ISA=AVX2, ATEN_CPU_CAPABILITY=avx2 and
MKL_ENABLE_INSTRUCTIONS=AVX2. The result file says what each engine uses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_checkpoint import gguf_checkpoint
from peer_process import Peer
from record import provenance, write_result
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shapes import SHAPES, checkpoint
from stream import BYTES, stream_bytes_a_second

OURS = "ryzjax"
STREAM = "memory, a GB"
CASES = {
    "decode, batch 1, context 1K": ({"do": "decode", "batch": 1, "context": 1024, "steps": 24}, 1.1),
    "decode, batch 8, context 1K": ({"do": "decode", "batch": 8, "context": 1024, "steps": 12}, 1.3),
    "prefill 512": ({"do": "prefill", "batch": 1, "context": 512, "steps": 3}, 1.2),
}
"""The command of each case for every round, and its goal: the ratio of llama.cpp's seconds to RyzJAX's."""
LONG = {"decode, batch 1, context 16K": ({"do": "decode", "batch": 1, "context": 16384, "steps": 16}, 1.1)}


_ROUND_SECONDS = 1.5
"""The time for one engine in one round. A slow engine takes fewer steps than the case has, but at least one."""


def main() -> None:
    """Measures every case, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument(
        "--bits",
        nargs="+",
        choices=("bf16", "int8", "int4"),
        default=["bf16", "int8", "int4"],
        help="types of the weights to measure (default: all)",
    )
    parser.add_argument("--peers", nargs="+", choices=("llama.cpp", "torch"), default=["llama.cpp", "torch"])
    parser.add_argument(
        "--activations",
        choices=("auto", "bf16", "int8"),
        default="auto",
        help="RyzJAX's activations beside low-bit weights (default: what is faster)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds after a warm-up (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers; XLA uses every core")
    parser.add_argument("--long", action="store_true", help="measure a context of 16K tokens too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ryzjax-bench")
    arguments = parser.parse_args()

    cases = CASES | (LONG if arguments.long else {})
    model = checkpoint(arguments.shape, arguments.folder)
    figures: dict[str, object] = {}
    table = Table()
    about: dict[str, dict[str, dict[str, Any]]] = {}
    for column in (
        "weights",
        "case",
        "ryzjax ms",
        "llama.cpp ms",
        "ratio",
        "wanted",
        "torch ms",
        "ratio",
        "GB/s",
        "of memory",
    ):
        table.add_column(column, justify="left" if column in ("weights", "case") else "right")
    with Progress(console=Console(stderr=True)) as progress:
        for bits in arguments.bits:
            seconds, about[bits] = _rounds(model, bits, cases, arguments, progress)
            for case, measured in seconds.items():
                weight_bytes = about[bits][OURS]["weight_bytes"]
                figures[f"{bits}, {case}"] = _row(table, bits, case, cases[case], measured, weight_bytes)
    isa = next(iter(about.values()))[OURS]["isa"]
    cpu = provenance()["hardware"]["cpu"]
    table.title = f"{arguments.shape} on {cpu} ({isa}): medians of {arguments.rounds} rounds; ratios are peer / ryzjax"
    Console(width=140).print(table)
    Console().print(
        "GB/s: weights that a step of one token reads; of memory: relative to the memory speed in the same rounds"
    )
    print(
        write_result(
            f"peers-{arguments.shape}-{isa}",
            {"shape": arguments.shape, "rounds": arguments.rounds, "engines": about, "cases": figures},
        )
    )


def _rounds(
    model: Path, bits: str, cases: Mapping[str, tuple], arguments: argparse.Namespace, progress: Progress
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Any]]]:
    """Measures all cases with weights of one type.

    Returns:
      For each case and engine, the median of each round in seconds. `STREAM` stands beside the engines, with the
      seconds in which memory delivered 1 GB in that round. Then what each engine reports about itself. A step of one
      token reads all of RyzJAX's `weight_bytes`.
    """
    # RyzJAX sequences that were prefilled first are some decode steps ahead of the others, so they need more room.
    room = max(c["context"] + (arguments.rounds + 1) * (c["steps"] + 8) + 64 for c, _ in cases.values())
    threads = str(arguments.threads)
    peers = {OURS: Peer("peer_ryzjax.py", str(model), str(room), bits, arguments.activations)}
    if "llama.cpp" in arguments.peers:
        peers["llama.cpp"] = Peer("peer_llama_cpp.py", str(gguf_checkpoint(model, bits)), threads)
    if "torch" in arguments.peers and bits == "bf16":
        peers["torch"] = Peer("peer_torch.py", str(model), threads)
    seconds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in (*peers, STREAM)} for case in cases}
    task = progress.add_task(bits, total=(arguments.rounds + 1) * len(cases))
    for case, (command, _) in cases.items():
        taking_part = {name: peer for name, peer in peers.items() if name != "torch" or case not in LONG}
        measure = dict(command)
        if command["do"] == "decode":  # the prompts are prefilled once, then all engines take turns
            measure = {"do": "measure", "steps": command["steps"]}
            for peer in taking_part.values():
                peer.ask(command | {"room": (arguments.rounds + 1) * command["steps"] + 8})
        asked = dict.fromkeys(taking_part, measure)
        for round_number in range(arguments.rounds + 1):  # the first round is a warm-up
            for name, peer in taking_part.items():
                median = statistics.median(peer.ask(asked[name])["seconds"])
                if round_number:
                    seconds[case][name].append(median)
                else:
                    steps = max(1, min(command["steps"], int(_ROUND_SECONDS / median)))
                    asked[name] = measure | {"steps": steps}
            if round_number:
                seconds[case][STREAM].append(1e9 / stream_bytes_a_second(BYTES))
            progress.advance(task)
    for peer in peers.values():
        peer.close()
    return seconds, {name: peer.told for name, peer in peers.items()}


def _row(
    table: Table, bits: str, case: str, wanted: tuple, measured: dict[str, list[float]], weight_bytes: int
) -> dict[str, object]:
    """Adds a case to the table and returns its figures."""
    ours = measured[OURS]
    found: dict[str, object] = {"ryzjax_ms": statistics.median(ours) * 1e3, "wanted": wanted[1], "rounds_s": measured}
    cells = []
    for name in ("llama.cpp", "torch"):
        theirs = measured.get(name, [])
        if not theirs:
            cells += ["", ""]
            continue
        ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
        found |= {f"{name}_ms": statistics.median(theirs) * 1e3, f"{name}_ratio": ratio}
        cells += [f"{statistics.median(theirs) * 1e3:.1f}", f"{ratio:.2f}"]
    rate = share = ""
    if wanted[0]["do"] == "decode" and wanted[0]["batch"] == 1:
        gigabytes = weight_bytes / 1e9
        found["weight_gb_s"] = gigabytes / statistics.median(ours)
        found["of_memory"] = statistics.median(m * gigabytes / o for m, o in zip(measured[STREAM], ours, strict=True))
        rate, share = f"{found['weight_gb_s']:.1f}", f"{found['of_memory']:.0%}"
    table.add_row(
        bits, case, f"{statistics.median(ours) * 1e3:.1f}", *cells[:2], f">= {wanted[1]}", *cells[2:], rate, share
    )
    return found


if __name__ == "__main__":
    main()
