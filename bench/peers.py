"""RyzJAX and transformers + torch in turn, on the same random weights: decode and prefill, medians and ratios.

    python bench/peers.py [--shape qwen2.5-0.5b] [--rounds 5]

Both engines stay loaded in processes of their own and take turns, so that a change of the machine's speed falls
on both. Needs the `bench` extra (torch).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import write_result
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from shapes import SHAPES, checkpoint

HERE = Path(__file__).parent
# name -> (command, what must be reached: ratio of peer seconds to ours)
CASES = {
    "decode, batch 1, context 1024": ({"kind": "decode", "batch": 1, "context": 1024, "steps": 16}, 0.8),
    "decode, batch 8, context 1024": ({"kind": "decode", "batch": 8, "context": 1024, "steps": 12}, 0.75),
    "prefill 512": ({"kind": "prefill", "batch": 1, "context": 512, "steps": 3}, 1.0),
}


class Peer:
    """A child process that answers measuring commands."""

    def __init__(self, script: str, *arguments: str):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def measure(self, command: dict[str, object]) -> list[float]:
        """Seconds, one a step."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, list[float]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(line)


def main() -> None:
    """Measures every case in rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="torch threads; XLA uses every core")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ryzjax-bench")
    arguments = parser.parse_args()

    model = str(checkpoint(arguments.shape, arguments.folder))
    peers = {
        "torch": Peer("peer_torch.py", model, str(arguments.threads)),
        "ryzjax": Peer("peer_ryzjax.py", model, "2048"),
    }
    seconds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in peers} for case in CASES}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("rounds", total=(arguments.rounds + 1) * len(CASES))
        for round_number in range(arguments.rounds + 1):  # the first is a warm-up
            for case, (command, _) in CASES.items():
                for name, peer in peers.items():
                    median = statistics.median(peer.measure(command))
                    if round_number:
                        seconds[case][name].append(median)
                progress.advance(task)
    for peer in peers.values():
        peer.close()

    table = Table(title=f"{arguments.shape}, bf16, medians of {arguments.rounds} rounds")
    for column in ("case", "torch ms", "ryzjax ms", "torch / ryzjax", "wanted"):
        table.add_column(column)
    figures: dict[str, object] = {}
    for case, (_, wanted) in CASES.items():
        torch_s, ours_s = (statistics.median(seconds[case][name]) for name in ("torch", "ryzjax"))
        ratio = statistics.median(t / o for t, o in zip(seconds[case]["torch"], seconds[case]["ryzjax"], strict=True))
        table.add_row(case, f"{torch_s * 1e3:.1f}", f"{ours_s * 1e3:.1f}", f"{ratio:.2f}", f">= {wanted}")
        figures[case] = {"torch_ms": torch_s * 1e3, "ryzjax_ms": ours_s * 1e3, "ratio": ratio, "wanted": wanted}
    Console(width=100).print(table)
    print(write_result(f"peers-{arguments.shape}", {"shape": arguments.shape, "cases": figures, "rounds_s": seconds}))


if __name__ == "__main__":
    main()
